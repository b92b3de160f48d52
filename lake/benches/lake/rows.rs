//! Made-up orders, as rows and as the records that shards write of them.

use dosql_proto::{Column, LakeAppend, Operation, Row, RowChange, Value, WalRecord, WalTable};

/// Shards that the rows come from, in turns.
pub(crate) const SHARDS: u64 = 4;
/// Row changes of a transaction.
const TRANSACTION: usize = 10;
/// Transactions of a delivery, as `CDC_BATCH_SIZE` has it.
const DELIVERY: usize = 100;
/// Noon of 2026-01-01, in milliseconds since the epoch.
const NOON_MS: u64 = 1_767_268_800_000;

/// The columns, with their declared types.
pub(crate) const COLUMNS: [(&str, &str); 10] = [
    ("id", "INTEGER"),
    ("customer", "INTEGER"),
    ("product", "TEXT"),
    ("status", "TEXT"),
    ("region", "TEXT"),
    ("quantity", "INTEGER"),
    ("price", "REAL"),
    ("discount", "REAL"),
    ("note", "TEXT"),
    ("created_at", "TEXT"),
];

/// The source table of this name.
pub(crate) fn table(name: &str, columns: &[(&str, &str)]) -> WalTable {
    let column = |(name, declared): &(&str, &str)| Column { name: (*name).into(), declared_type: (*declared).into() };
    WalTable { name: name.into(), columns: columns.iter().map(column).collect(), primary_key: vec![0] }
}

/// A number that looks like chance, the same for the same `of`.
pub(crate) fn scattered(of: u64) -> u64 {
    let mut value = of.wrapping_add(0x9E37_79B9_7F4A_7C15);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// The order of this number, as its `version`th update leaves it.
pub(crate) fn order(id: u64, version: u64) -> Row {
    let chance = scattered(id ^ version << 48);
    let of = |number: u64, shift: u32| (chance >> shift) % number;
    let value = |column: usize| -> Value {
        match column {
            0 => id.cast_signed().into(),
            1 => of(50_000, 3).cast_signed().into(),
            2 => format!("product {:04}", of(2_000, 7)).into(),
            3 => ["new", "paid", "packed", "sent", "returned"][of(5, 11) as usize].into(),
            4 => ["north", "east", "south", "west"][of(4, 17) as usize].into(),
            5 => (of(9, 23) as i64 + 1).into(),
            6 => ((of(100_000, 5) as f64) / 100.0).into(),
            7 => ((of(4, 29) * 5) as f64).into(),
            8 if of(3, 31) == 0 => Value::NULL,
            8 => format!("order {id} leaves from dock {}", of(40, 37)).into(),
            _ => format!("2026-01-01T{:02}:{:02}:{:02}", of(24, 13), of(60, 19), of(60, 27)).into(),
        }
    };
    (0..COLUMNS.len()).map(value).collect()
}

/// A row's number, its state before, if there was one, and after.
pub(crate) type Changed = (u64, Option<Row>, Row);

/// Deliveries of changes to the lake, whose LSNs go on from delivery to delivery.
pub(crate) struct Deliveries {
    table: WalTable,
    lsns: [u64; SHARDS as usize],
    /// By shard, what is not delivered yet.
    waiting: [Vec<RowChange>; SHARDS as usize],
}

impl Deliveries {
    pub(crate) fn new(table: WalTable) -> Self {
        Self { table, lsns: [0; SHARDS as usize], waiting: Default::default() }
    }

    /// The next delivery, made when it is asked for; `None` after the last of these rows. A row's shard is that of its number.
    pub(crate) fn next(&mut self, rows: &mut dyn Iterator<Item = Changed>) -> Option<LakeAppend> {
        for (id, before, after) in rows {
            let operation = if before.is_some() { Operation::Update } else { Operation::Insert };
            let rowid = id.cast_signed();
            let shard = (id % SHARDS) as usize;
            self.waiting[shard].push(RowChange {
                table: 0,
                operation: operation.into(),
                rowid,
                before,
                after: Some(after),
            });
            if self.waiting[shard].len() == TRANSACTION * DELIVERY {
                return Some(self.delivery(shard));
            }
        }
        let rest = self.waiting.iter().position(|changes| !changes.is_empty())?;
        Some(self.delivery(rest))
    }

    fn delivery(&mut self, shard: usize) -> LakeAppend {
        let after_lsn = self.lsns[shard];
        let mut changes = std::mem::take(&mut self.waiting[shard]).into_iter().peekable();
        let mut records = Vec::with_capacity(DELIVERY);
        while changes.peek().is_some() {
            self.lsns[shard] += 1;
            let changes = changes.by_ref().take(TRANSACTION).collect();
            let (lsn, tables) = (self.lsns[shard], vec![self.table.clone()]);
            records.push(WalRecord { lsn, hlc: NOON_MS << 16, tables, changes, ..WalRecord::default() });
        }
        LakeAppend { shard: format!("shard-{shard}"), after_lsn, records }
    }
}
