//! `sum`, `total` and `avg` in two halves: what each shard knows of its rows, and the aggregate of all rows from that.
//!
//! A shard's half is one aggregate for all three, where `avg` of SQLite's own would be two; and what rounding leaves out of a
//! shard's sum is not lost. Both halves add as SQLite does (`sumStep` in its `func.c`): exactly while all values are integers whose
//! sum is one, else by Kahan, Babuska and Neumaier.

use std::ffi::{CString, c_char, c_int, c_void};

use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, Error, Result, ffi};

/// The shard's half: `_dosql_sum_part(x)`.
pub const PART: &str = "_dosql_sum_part";
/// Of parts: what `sum` is of all rows. Like it, NULL where there is no value, and an error where integers, and nothing but integers,
/// [overflow](OVERFLOW).
pub const SUM: &str = "_dosql_sum";
/// Of parts: what `total` is of all rows.
pub const TOTAL: &str = "_dosql_total";
/// Of parts: what `avg` is of all rows, NULL where there is no value.
pub const MEAN: &str = "_dosql_mean";
/// What SQLite says of a sum of integers that is none. Whether it is depends on the order of the rows.
pub const OVERFLOW: &str = "integer overflow";

/// From here on a double does not hold every integer.
const EXACT: i64 = 1 << 52;
/// The bytes of a part: how its sum is held, the count, and the sum's two halves.
const PART_BYTES: usize = 25;

/// Takes in one row's value.
type Step = unsafe extern "C" fn(*mut ffi::sqlite3_context, c_int, *mut *mut ffi::sqlite3_value);
/// Says what all values came to.
type Finish = unsafe extern "C" fn(*mut ffi::sqlite3_context);

/// Makes the shard's half known to a connection.
///
/// # Errors
/// What SQLite says.
pub fn define_part(connection: &Connection) -> Result<()> {
    define(connection, PART, add, finish_part)
}

/// Makes the wholes known to a connection.
///
/// # Errors
/// What SQLite says.
pub fn define_wholes(connection: &Connection) -> Result<()> {
    define(connection, SUM, merge, finish_sum)?;
    define(connection, TOTAL, merge, finish_total)?;
    define(connection, MEAN, merge, finish_mean)
}

fn define(connection: &Connection, name: &str, step: Step, finish: Finish) -> Result<()> {
    let name = CString::new(name)?;
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    // SAFETY: the connection outlives the call, the name ends with NUL, and the callbacks are what SQLite expects. They are
    // not given through rusqlite's own form, whose calls cost as much as the second aggregate that is saved.
    let code = unsafe {
        ffi::sqlite3_create_function_v2(
            connection.handle(),
            name.as_ptr(),
            1,
            flags.bits(),
            std::ptr::null_mut(),
            None,
            Some(step),
            Some(finish),
            None,
        )
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// The sum of some values, and how many they are. All zero is the sum of none, which is how SQLite hands out its memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
struct Sum {
    count: u64,
    /// The sum, while it is exact.
    exact: i64,
    /// Else the sum, and what rounding has left out of it.
    rounded: f64,
    error: f64,
    is_rounded: bool,
    /// Integers alone have overflowed.
    has_overflowed: bool,
    has_real: bool,
}

impl Sum {
    fn add_integer(&mut self, value: i64) {
        if !self.is_rounded {
            if let Some(sum) = self.exact.checked_add(value) {
                self.exact = sum;
                return;
            }
            self.has_overflowed = true;
        }
        let (high, low) = halves(value);
        self.add_rounded(high);
        if low != 0.0 {
            self.add_rounded(low);
        }
    }

    fn add_real(&mut self, value: f64) {
        self.has_real = true;
        self.add_rounded(value);
    }

    fn add_rounded(&mut self, value: f64) {
        if !self.is_rounded {
            self.is_rounded = true;
            (self.rounded, self.error) = halves(self.exact);
        }
        let (sum, next) = (self.rounded, self.rounded + value);
        self.error += if sum.abs() > value.abs() { (sum - next) + value } else { (value - next) + sum };
        self.rounded = next;
    }

    fn merge(&mut self, part: &Self) {
        self.count += part.count;
        self.has_overflowed |= part.has_overflowed;
        self.has_real |= part.has_real;
        if !part.is_rounded {
            return self.add_integer(part.exact);
        }
        self.add_rounded(part.rounded);
        if part.error.is_finite() {
            self.add_rounded(part.error);
        }
    }

    /// Whether SQLite has an error for it: a real among the values makes it take their sum for one.
    fn overflows(&self) -> bool {
        self.has_overflowed && !self.has_real
    }

    #[expect(clippy::cast_precision_loss, reason = "as SQLite rounds it")]
    fn total(&self) -> f64 {
        match self.is_rounded {
            false => self.exact as f64,
            // What an infinite sum leaves out is no number.
            true if self.error.is_finite() => self.rounded + self.error,
            true => self.rounded,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "as SQLite divides")]
    fn mean(&self) -> f64 {
        self.total() / self.count as f64
    }

    /// All little-endian: flags, count, and the exact sum and zero, or the rounded one and what that leaves out.
    fn encode(&self) -> [u8; PART_BYTES] {
        let flags = u8::from(self.is_rounded) | u8::from(self.has_overflowed) << 1 | u8::from(self.has_real) << 2;
        let (sum, rest) = match self.is_rounded {
            false => (self.exact.to_le_bytes(), [0; 8]),
            true => (self.rounded.to_le_bytes(), self.error.to_le_bytes()),
        };
        let mut encoded = [flags; PART_BYTES];
        encoded[1..9].copy_from_slice(&self.count.to_le_bytes());
        encoded[9..17].copy_from_slice(&sum);
        encoded[17..].copy_from_slice(&rest);
        encoded
    }

    fn decode(encoded: &[u8; PART_BYTES]) -> Self {
        let [flags, numbers @ ..] = encoded;
        let (numbers, _) = numbers.as_chunks::<8>();
        let [is_rounded, has_overflowed, has_real] = [1, 2, 4].map(|flag| flags & flag != 0);
        let sum =
            Self { count: u64::from_le_bytes(numbers[0]), is_rounded, has_overflowed, has_real, ..Self::default() };
        match is_rounded {
            false => Self { exact: i64::from_le_bytes(numbers[1]), ..sum },
            true => Self { rounded: f64::from_le_bytes(numbers[1]), error: f64::from_le_bytes(numbers[2]), ..sum },
        }
    }
}

/// An integer as two reals that add up to it.
#[expect(clippy::cast_precision_loss, reason = "both halves are such as a double holds")]
fn halves(value: i64) -> (f64, f64) {
    if (-EXACT..=EXACT).contains(&value) {
        return (value as f64, 0.0);
    }
    let low = value % 16_384;
    ((value - low) as f64, low as f64)
}

/// Adds one row's value to a shard's half.
unsafe extern "C" fn add(context: *mut ffi::sqlite3_context, _: c_int, values: *mut *mut ffi::sqlite3_value) {
    // SAFETY: SQLite calls this with a context and the one value that the function was defined with, and gives the group
    // zeroed memory of the size asked for, aligned to eight bytes, which is a `Sum`.
    unsafe {
        let sum = ffi::sqlite3_aggregate_context(context, size_of::<Sum>() as c_int).cast::<Sum>();
        let Some(sum) = sum.as_mut() else { return ffi::sqlite3_result_error_nomem(context) };
        match ffi::sqlite3_value_numeric_type(*values) {
            ffi::SQLITE_NULL => return,
            ffi::SQLITE_INTEGER => sum.add_integer(ffi::sqlite3_value_int64(*values)),
            _ => sum.add_real(ffi::sqlite3_value_double(*values)),
        }
        sum.count += 1;
    }
}

/// Adds one shard's half to a whole.
unsafe extern "C" fn merge(context: *mut ffi::sqlite3_context, _: c_int, parts: *mut *mut ffi::sqlite3_value) {
    // SAFETY: as for `add`. The blob is read before SQLite is called again.
    unsafe {
        let sum = ffi::sqlite3_aggregate_context(context, size_of::<Sum>() as c_int).cast::<Sum>();
        let Some(sum) = sum.as_mut() else { return ffi::sqlite3_result_error_nomem(context) };
        let part = ffi::sqlite3_value_blob(*parts).cast::<[u8; PART_BYTES]>();
        match part.as_ref() {
            Some(part) if ffi::sqlite3_value_bytes(*parts) as usize == PART_BYTES => sum.merge(&Sum::decode(part)),
            _ => fail(context, "a part of a sum is damaged"),
        }
    }
}

/// What the values of a group came to.
///
/// # Safety
/// Called from a `Finish` alone, with its context.
unsafe fn summed(context: *mut ffi::sqlite3_context) -> Sum {
    // SAFETY: as for `add`; where no row came there is no memory.
    unsafe { ffi::sqlite3_aggregate_context(context, 0).cast::<Sum>().as_ref().copied().unwrap_or_default() }
}

/// # Safety
/// Called with the context that SQLite has given.
unsafe fn fail(context: *mut ffi::sqlite3_context, why: &str) {
    // SAFETY: SQLite copies the text.
    unsafe { ffi::sqlite3_result_error(context, why.as_ptr().cast::<c_char>(), why.len() as c_int) }
}

unsafe extern "C" fn finish_part(context: *mut ffi::sqlite3_context) {
    // SAFETY: the context is SQLite's, which copies the bytes.
    unsafe {
        let encoded = summed(context).encode();
        let bytes = encoded.as_ptr().cast::<c_void>();
        ffi::sqlite3_result_blob(context, bytes, PART_BYTES as c_int, ffi::SQLITE_TRANSIENT());
    }
}

unsafe extern "C" fn finish_sum(context: *mut ffi::sqlite3_context) {
    // SAFETY: the context is SQLite's.
    unsafe {
        match summed(context) {
            Sum { count: 0, .. } => ffi::sqlite3_result_null(context),
            sum if sum.overflows() => fail(context, OVERFLOW),
            sum if sum.is_rounded => ffi::sqlite3_result_double(context, sum.total()),
            sum => ffi::sqlite3_result_int64(context, sum.exact),
        }
    }
}

unsafe extern "C" fn finish_total(context: *mut ffi::sqlite3_context) {
    // SAFETY: the context is SQLite's.
    unsafe { ffi::sqlite3_result_double(context, summed(context).total()) }
}

unsafe extern "C" fn finish_mean(context: *mut ffi::sqlite3_context) {
    // SAFETY: the context is SQLite's.
    unsafe {
        match summed(context) {
            Sum { count: 0, .. } => ffi::sqlite3_result_null(context),
            sum => ffi::sqlite3_result_double(context, sum.mean()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs a database without an actor around it")]
mod tests {
    use rusqlite::types::Value;

    use super::*;

    fn connection() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        define_part(&connection).unwrap();
        define_wholes(&connection).unwrap();
        connection
    }

    /// Each aggregate of `values` by SQLite itself and by parts of two values; `None` for an overflow.
    fn aggregates(values: &[&str]) -> [(Option<Value>, Option<Value>); 3] {
        let connection = connection();
        let rows: Vec<String> = values.iter().enumerate().map(|(at, value)| format!("({}, {value})", at / 2)).collect();
        let from = format!("(SELECT column1 AS part, column2 AS x FROM (VALUES {}))", rows.join(", "));
        let one = |sql: String| match connection.query_row(&sql, [], |row| row.get(0)) {
            Err(error) if error.to_string().contains(OVERFLOW) => None,
            value => Some(value.unwrap()),
        };
        [("sum", SUM), ("total", TOTAL), ("avg", MEAN)].map(|(own, whole)| {
            (
                one(format!("SELECT {own}(x) FROM {from}")),
                one(format!("SELECT {whole}(p) FROM (SELECT {PART}(x) AS p FROM {from} GROUP BY part)")),
            )
        })
    }

    #[test]
    fn the_aggregates_of_parts_are_those_of_all() {
        for values in [
            &["1", "2", "4", "NULL", "7"][..],
            &["NULL", "NULL", "NULL"],
            &["0.1", "0.2", "0.3", "1e300", "-1e300", "3"],
            &["9223372036854775807", "9223372036854775807", "9223372036854775807", "1"],
            &["9223372036854775807", "9223372036854775807", "9223372036854775807", "1", "0.5"],
            &["0.5", "0", "9223372036854775807", "9223372036854775807"],
            &["9223372036854775807", "1", "-9223372036854775807", "-1", "5"],
            &["9223372036854775807", "-5", "9", "3.75", "-9223372036854775807", "7"],
            &["-9223372036854775808", "-9223372036854775808", "0.5"],
            &["9007199254740993", "0.5", "9007199254740993", "2"],
            &["1e308", "1e308", "1e308", "-1.0"],
            &["9e999", "1", "2.5", "3"],
            &["'12'", "'1e2'", "'12abc'", "x'3132'", "''", "7"],
            &["'12'", "' 7'", "'9223372036854775807'"],
        ] {
            for (one, parts) in aggregates(values) {
                assert_eq!(one, parts, "{values:?}");
            }
        }
    }

    #[test]
    fn no_rows_have_a_total_alone() {
        let value = |whole: &str| {
            let sql = format!("SELECT {whole}(p) FROM (SELECT {PART}(1) AS p WHERE 0)");
            connection().query_row(&sql, [], |row| row.get::<_, Value>(0)).unwrap()
        };
        assert_eq!([SUM, TOTAL, MEAN].map(value), [Value::Null, Value::Real(0.0), Value::Null]);
    }

    #[test]
    fn a_damaged_part_is_refused() {
        for part in ["NULL", "x'00'", "1.5", "zeroblob(26)"] {
            let asked = connection().query_row(&format!("SELECT {SUM}({part})"), [], |row| row.get::<_, Value>(0));
            assert!(asked.unwrap_err().to_string().contains("damaged"), "{part}");
        }
    }
}
