//! Reading a table back: which files of its newest snapshot may hold rows that a read wants, which of their rows are deleted, and
//! what SQLite's values of the others are.
//!
//! Who reads the files is not settled here: DataFusion on hosts with threads and memory to spare, elsewhere [`LakeReader`], one row
//! group after the other.

mod aggregate;
mod footers;
mod kept;
mod predicate;
mod reader;
mod request;
mod row_group;
mod values;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

use arrow::datatypes::{Field, FieldRef};
use bytes::Bytes;
use dosql_actors::{Context, ObjectStore};
use dosql_proto::{LakeAffinity, LakeScan, Position};
use iceberg::spec::{DataFile, SchemaRef};

use crate::LakeError;
use crate::authority::Authority;
use crate::columns::{ColumnType, LakeColumns, Meta, Source, TableKind};
use crate::forms::Forms;
use crate::live_files::LiveFiles;
use crate::table::{WATERMARK, table_name};
use predicate::{Bounds, Nulls, Translator, Typed, datum_bound};

pub use footers::Footers;
pub use kept::{Kept, kept};
pub use predicate::{Comparison, Literal, Predicate};
pub use reader::LakeReader;
pub use request::{check, freshen};
pub use values::Values;

/// Snapshots whose files are remembered.
const KEPT_SNAPSHOTS: usize = 32;

/// Opens tables of the lake for reading; remembers what their snapshots consist of.
pub struct Tables {
    authority: Authority,
    snapshots: RefCell<HashMap<String, Rc<Snapshot>>>,
}

/// What a snapshot consists of.
struct Snapshot {
    id: Option<i64>,
    columns: LakeColumns,
    forms: Forms,
    /// Ids of columns that have had other names, or whose names others have had.
    renamed: HashSet<i32>,
    position: Position,
    live: LiveFiles,
    /// By data file, in ascending order.
    deleted: HashMap<String, Vec<i64>>,
    /// By data file, the object's path.
    paths: HashMap<String, String>,
}

/// A data file to be read.
#[derive(Debug, Clone)]
pub struct ScanFile {
    /// The object.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Rows in it, deleted ones included.
    pub rows: u64,
    /// The positions of deleted rows, in ascending order.
    pub deleted: Vec<i64>,
}

/// A column that a read refers to.
#[derive(Debug, Clone)]
pub struct ScanColumn {
    /// Its name in the source table.
    pub name: String,
    /// Its field in the lake table, unless that lacks it: then it is null.
    pub field: Option<FieldRef>,
    id: i32,
    column_type: Option<ColumnType>,
    affinity: LakeAffinity,
}

/// A read of one table, and the files that it must look into.
pub struct TableScan {
    /// What the request refers to, after it what [`misfits`](Self::misfits) are, and `_shard` where only one shard is wanted.
    pub columns: Vec<ScanColumn>,
    /// Columns of the rows.
    pub output: Vec<usize>,
    /// What every row that is wanted meets; `columns` are meant.
    pub predicate: Predicate,
    /// Whether no other rows meet it.
    pub exact: bool,
    /// The places in `columns` of what tells of values that do not fit their columns: `_misfit`, and columns beside them.
    pub misfits: Range<usize>,
    /// The files.
    pub files: Vec<ScanFile>,
    /// Files of the snapshot that need not be read.
    pub files_skipped: u64,
    /// How far the table has taken the shards in.
    pub position: Position,
    /// The source table.
    pub table: String,
    /// Whether a file that is read may have values that do not fit their columns.
    pub has_misfits: bool,
    sums: aggregate::Extents,
}

impl Tables {
    /// Reads the lake that this actor can reach.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { authority: Authority::of(context), snapshots: RefCell::default() }
    }

    /// Finds out what a read must look into; `None` where the lake has nothing of the table.
    ///
    /// # Errors
    /// `UNSUPPORTED` where the lake does not tell a column exactly; whatever keeps the table's metadata from being read.
    pub async fn open(&self, request: &LakeScan) -> Result<Option<TableScan>, LakeError> {
        let name = table_name(&request.table, TableKind::Mirror);
        let Some(snapshot) = self.snapshot(&name).await? else { return Ok(None) };
        let mut columns = Vec::with_capacity(request.columns.len() + 2);
        for column in &request.columns {
            let id = snapshot.forms.id_named(&column.name);
            columns.push(ScanColumn::find(&snapshot.columns, column.name.clone(), column.affinity(), id));
        }
        let output: Vec<usize> = request.output.iter().map(|column| *column as usize).collect();
        for place in &output {
            let (column, asked) = (&columns[*place], &request.columns[*place]);
            let refused =
                |reason| LakeError::NotInLake { table: request.table.clone(), column: column.name.clone(), reason };
            match column.column_type {
                Some(ColumnType::String) if column.affinity == LakeAffinity::Blob => {
                    return Err(refused("it has no type, so that numbers stand there as text"));
                }
                None if asked.generated => return Err(refused("it is computed from others, and not stored")),
                _ => {}
            }
        }
        let meta = |meta: Meta| {
            let of_it = snapshot.columns.columns.iter().find(|column| column.source == Source::Meta(meta));
            let id = of_it.map(|column| column.id);
            ScanColumn::find(&snapshot.columns, meta.name().to_owned(), LakeAffinity::Text, id)
        };
        let typed: Vec<Typed> = columns.iter().map(ScanColumn::typed).collect();
        let mut translator = Translator { columns: &typed, exact: true };
        let wanted = translator.all(&request.filter);
        let exact = translator.exact;
        let named = columns.len();
        columns.push(meta(Meta::Misfit));
        for place in 0..named {
            columns.extend(columns[place].variants(&snapshot.columns));
        }
        let misfits = named..columns.len();
        let mut predicate = match wanted {
            Predicate::All(parts) if parts.is_empty() => Predicate::All(parts),
            wanted => Predicate::Any(std::iter::once(wanted).chain(misfits.clone().map(Predicate::NotNull)).collect()),
        };
        if !request.shard.is_empty() {
            let shard = Literal::String(request.shard.clone());
            predicate = Predicate::All(vec![Predicate::Compare(columns.len(), Comparison::Equal, shard), predicate]);
            columns.push(meta(Meta::Shard));
        }
        let mut scan = TableScan {
            output,
            predicate,
            exact,
            misfits: misfits.clone(),
            files: Vec::new(),
            files_skipped: 0,
            position: snapshot.position.clone(),
            table: request.table.clone(),
            has_misfits: false,
            sums: aggregate::Extents::of(columns.len()),
            columns,
        };
        for live in &snapshot.live.data {
            let bounds = FileBounds { file: &live.file, columns: &scan.columns };
            if scan.predicate.may_match(&bounds) {
                scan.has_misfits |= misfits.clone().any(|place| bounds.nulls(place) != Nulls::All);
                scan.sums.add(&bounds, &scan.columns, live.file.record_count());
                let url = live.file.file_path();
                scan.files.push(ScanFile {
                    path: snapshot.paths[url].clone(),
                    bytes: live.file.file_size_in_bytes(),
                    rows: live.file.record_count(),
                    deleted: snapshot.deleted.get(url).cloned().unwrap_or_default(),
                });
            } else {
                scan.files_skipped += 1;
            }
        }
        // A misfit tells its columns by the names that they had when it was written.
        let renamed = |place: &&usize| snapshot.renamed.contains(&scan.columns[**place].id);
        if let Some(place) = scan.output.iter().find(renamed).filter(|_| scan.has_misfits) {
            return Err(LakeError::NotInLake {
                table: request.table.clone(),
                column: scan.columns[*place].name.clone(),
                reason: "rows that do not fit their columns may know it, or another column, by another name",
            });
        }
        Ok(Some(scan))
    }

    /// The newest snapshot of a table.
    async fn snapshot(&self, name: &str) -> Result<Option<Rc<Snapshot>>, LakeError> {
        let Some(table) = self.authority.load(name).await? else { return Ok(None) };
        let objects = self.authority.objects();
        let id = table.metadata.current_snapshot_id();
        if let Some(known) = self.snapshots.borrow().get(name).filter(|known| known.id == id) {
            return Ok(Some(Rc::clone(known)));
        }
        let live = table.live_files(objects).await?;
        let deleted = table.deleted_rows(objects, live.deletes.iter()).await?;
        let path = |url: &str| Ok::<_, LakeError>((url.to_owned(), table.path_of(url)?));
        let paths = live.data.iter().map(|file| path(file.file.file_path())).collect::<Result<_, _>>()?;
        let mut position = Position::default();
        for (shard, lsn) in table.watermarks() {
            if let (Some(shard), Ok(lsn)) = (shard.strip_prefix(WATERMARK), lsn.parse()) {
                position.advance(shard, lsn);
            }
        }
        let renamed = renamed(table.metadata.schemas_iter());
        let (columns, forms) = (table.columns, table.forms);
        let snapshot = Rc::new(Snapshot { id, columns, forms, renamed, position, live, deleted, paths });
        let mut snapshots = self.snapshots.borrow_mut();
        if snapshots.len() >= KEPT_SNAPSHOTS {
            snapshots.clear();
        }
        snapshots.insert(name.to_owned(), Rc::clone(&snapshot));
        Ok(Some(snapshot))
    }
}

/// Ids of the fields that have had several names in these schemas, or a name that others have had as well.
fn renamed<'a>(schemas: impl Iterator<Item = &'a SchemaRef>) -> HashSet<i32> {
    let mut names: HashMap<i32, String> = HashMap::new();
    let mut ids: HashMap<String, i32> = HashMap::new();
    let mut renamed = HashSet::new();
    for field in schemas.flat_map(|schema| schema.as_struct().fields()) {
        let name = field.name.to_ascii_lowercase();
        if names.entry(field.id).or_insert_with(|| name.clone()) != &name {
            renamed.insert(field.id);
        }
        let first = *ids.entry(name).or_insert(field.id);
        if first != field.id {
            renamed.extend([first, field.id]);
        }
    }
    renamed
}

impl ScanColumn {
    /// The column of this id.
    fn find(columns: &LakeColumns, name: String, affinity: LakeAffinity, id: Option<i32>) -> Self {
        let place = columns.columns.iter().position(|column| Some(column.id) == id);
        let Some(place) = place else { return Self { name, field: None, id: 0, column_type: None, affinity } };
        let column = &columns.columns[place];
        let column_type = match column.source {
            Source::Column(column_type) | Source::Variant { column_type, .. } => column_type,
            // `_shard` and `_misfit`.
            Source::Meta(_) => ColumnType::String,
        };
        let field: FieldRef = columns.arrow.fields()[place].clone();
        Self { name, field: Some(field), id: column.id, column_type: Some(column_type), affinity }
    }

    /// The columns that hold its values which it does not.
    fn variants(&self, columns: &LakeColumns) -> Vec<Self> {
        let of_it = |source: &Source| matches!(source, Source::Variant { of, .. } if *of == self.id);
        let variants = columns.columns.iter().filter(|column| self.field.is_some() && of_it(&column.source));
        variants.map(|column| Self::find(columns, self.name.clone(), LakeAffinity::Blob, Some(column.id))).collect()
    }

    fn typed(&self) -> Typed {
        Typed { column_type: self.column_type, affinity: self.affinity }
    }
}

impl TableScan {
    /// The names that the columns have now, by field id.
    #[must_use]
    pub fn names(&self) -> HashMap<i32, String> {
        let named = self.columns.iter().filter_map(|column| Some((column.id, column.field.as_ref()?.name().clone())));
        named.collect()
    }

    /// The fields that are read: of these columns, of the predicate's, and of misfits where there are some, or nothing else
    /// would be read. Each once.
    #[must_use]
    pub fn fields(&self, columns: &[usize]) -> Vec<FieldRef> {
        let mut places = columns.to_vec();
        self.predicate.columns(&mut places);
        let some = places.iter().any(|place| self.columns[*place].field.is_some());
        if self.has_misfits {
            places.extend(self.misfits.clone());
        } else if !some {
            places.push(self.misfits.start);
        }
        places.sort_unstable();
        places.dedup();
        let mut fields: Vec<FieldRef> = Vec::new();
        for field in places.iter().filter_map(|place| self.columns[*place].field.as_ref()) {
            if !fields.iter().any(|known| Field::name(known) == Field::name(field)) {
                fields.push(field.clone());
            }
        }
        fields
    }
}

/// What a manifest says of a file's columns.
struct FileBounds<'a> {
    file: &'a DataFile,
    columns: &'a [ScanColumn],
}

impl Bounds for FileBounds<'_> {
    fn lower(&self, column: usize) -> Option<Literal> {
        datum_bound(self.file.lower_bounds().get(&self.columns[column].id))
    }

    fn upper(&self, column: usize) -> Option<Literal> {
        datum_bound(self.file.upper_bounds().get(&self.columns[column].id))
    }

    fn nulls(&self, column: usize) -> Nulls {
        let column = &self.columns[column];
        if column.field.is_none() {
            return Nulls::All;
        }
        match self.file.value_counts().contains_key(&column.id) {
            true => Nulls::of(self.file.null_value_counts().get(&column.id).copied(), self.file.record_count()),
            // A column that the file was written without, unless the manifest tells of none.
            false if !self.file.value_counts().is_empty() => Nulls::All,
            false => Nulls::Unknown,
        }
    }
}

/// Some bytes of a file that a scan reads.
///
/// # Errors
/// Where it is gone, ends before or cannot be read.
pub async fn bytes_of(objects: &dyn ObjectStore, path: &str, range: Range<u64>) -> Result<Bytes, LakeError> {
    let malformed = |reason: &str| LakeError::Malformed { path: path.to_owned(), reason: reason.to_owned() };
    let wanted = range.end.saturating_sub(range.start);
    let bytes = objects.get_range(path, range).await?.ok_or_else(|| malformed("it is missing"))?;
    match bytes.len() as u64 == wanted {
        true => Ok(bytes),
        false => Err(malformed("it is shorter than its manifest says")),
    }
}
