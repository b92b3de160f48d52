//! `avg` in two halves: what each shard knows of its rows' mean, and the mean of all rows from that.
//!
//! A shard's half is one aggregate, where SQLite's own `sum` and `count` would be two. Both halves add as SQLite's `avg` does
//! (`sumStep` in its `func.c`): exactly while all values are integers whose sum is one, else by Kahan, Babuska and Neumaier.

use std::ffi::{CString, c_char, c_int, c_void};

use rusqlite::functions::{Aggregate, Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, Result, ffi};

/// The shard's half: `_dosql_mean_part(x)`.
pub const PART: &str = "_dosql_mean_part";
/// The whole: `_dosql_mean(part)`, which is NULL where no part has a value.
pub const WHOLE: &str = "_dosql_mean";
/// What a shard says of a text or a blob, which only SQLite's own functions take for a number.
pub const NOT_A_NUMBER: &str = "a value to be averaged is no number";

/// From here on a double does not hold every integer.
const EXACT: i64 = 1 << 52;

/// Makes the shard's half known to a connection.
///
/// # Errors
/// What SQLite says.
pub fn define_part(connection: &Connection) -> Result<()> {
    let name = CString::new(PART)?;
    // SAFETY: the connection outlives the call, the name ends with NUL, and the callbacks are what SQLite expects. They are
    // not given through rusqlite's own form, whose calls cost as much as the second aggregate that is saved.
    let code = unsafe {
        ffi::sqlite3_create_function_v2(
            connection.handle(),
            name.as_ptr(),
            1,
            flags().bits(),
            std::ptr::null_mut(),
            None,
            Some(add),
            Some(finish),
            None,
        )
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// Makes the whole known to a connection.
///
/// # Errors
/// What SQLite says.
pub fn define_whole(connection: &Connection) -> Result<()> {
    connection.create_aggregate_function(WHOLE, 1, flags(), Whole)
}

fn flags() -> FunctionFlags {
    FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS
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
}

impl Sum {
    fn add_integer(&mut self, value: i64) {
        if !self.is_rounded
            && let Some(sum) = self.exact.checked_add(value)
        {
            self.exact = sum;
            return;
        }
        let (high, low) = halves(value);
        self.add_real(high);
        if low != 0.0 {
            self.add_real(low);
        }
    }

    fn add_real(&mut self, value: f64) {
        if !self.is_rounded {
            self.is_rounded = true;
            (self.rounded, self.error) = halves(self.exact);
        }
        let (sum, next) = (self.rounded, self.rounded + value);
        self.error += if sum.abs() > value.abs() { (sum - next) + value } else { (value - next) + sum };
        self.rounded = next;
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

    /// One byte that says how the sum is held, the count, and the sum's numbers, all little-endian.
    fn encode(&self) -> Vec<u8> {
        let mut encoded = vec![u8::from(self.is_rounded)];
        encoded.extend_from_slice(&self.count.to_le_bytes());
        match self.is_rounded {
            false => encoded.extend_from_slice(&self.exact.to_le_bytes()),
            true => [self.rounded, self.error].iter().for_each(|part| encoded.extend_from_slice(&part.to_le_bytes())),
        }
        encoded
    }

    fn decode(encoded: &[u8]) -> Option<Self> {
        let (kind, numbers) = encoded.split_first()?;
        let mut numbers = numbers.chunks_exact(8).map_while(|number| number.try_into().ok());
        let sum = Self { count: u64::from_le_bytes(numbers.next()?), ..Self::default() };
        let mut next = || numbers.next();
        match kind {
            0 => Some(Self { exact: i64::from_le_bytes(next()?), ..sum }),
            1 => {
                let (rounded, error) = (f64::from_le_bytes(next()?), f64::from_le_bytes(next()?));
                Some(Self { rounded, error, is_rounded: true, ..sum })
            }
            _ => None,
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
        match ffi::sqlite3_value_type(*values) {
            ffi::SQLITE_NULL => return,
            ffi::SQLITE_INTEGER => sum.add_integer(ffi::sqlite3_value_int64(*values)),
            ffi::SQLITE_FLOAT => sum.add_real(ffi::sqlite3_value_double(*values)),
            _ => {
                let why = NOT_A_NUMBER.as_ptr().cast::<c_char>();
                return ffi::sqlite3_result_error(context, why, NOT_A_NUMBER.len() as c_int);
            }
        }
        sum.count += 1;
    }
}

/// Says what a shard's half came to.
unsafe extern "C" fn finish(context: *mut ffi::sqlite3_context) {
    // SAFETY: as for `add`; where no row came there is no memory. SQLite copies the bytes that it is given.
    unsafe {
        let sum = ffi::sqlite3_aggregate_context(context, 0).cast::<Sum>();
        let encoded = sum.as_ref().copied().unwrap_or_default().encode();
        let bytes = encoded.as_ptr().cast::<c_void>();
        ffi::sqlite3_result_blob(context, bytes, encoded.len() as c_int, ffi::SQLITE_TRANSIENT());
    }
}

struct Whole;

impl Aggregate<Sum, Option<f64>> for Whole {
    fn init(&self, _: &mut Context<'_>) -> Result<Sum> {
        Ok(Sum::default())
    }

    fn step(&self, parts: &mut Context<'_>, sum: &mut Sum) -> Result<()> {
        let ValueRef::Blob(encoded) = parts.get_raw(0) else { return Ok(()) };
        let Some(part) = Sum::decode(encoded) else {
            return Err(Error::UserFunctionError("a part of a mean is damaged".into()));
        };
        sum.count += part.count;
        if part.is_rounded {
            sum.add_real(part.rounded);
            if part.error.is_finite() {
                sum.add_real(part.error);
            }
        } else {
            sum.add_integer(part.exact);
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "as SQLite divides")]
    fn finalize(&self, _: &mut Context<'_>, sum: Option<Sum>) -> Result<Option<f64>> {
        Ok(sum.filter(|sum| sum.count > 0).map(|sum| sum.total() / sum.count as f64))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs a database without an actor around it")]
mod tests {
    use super::*;

    /// The mean of `values`, as SQLite has it and by parts of two values.
    fn means(values: &[&str]) -> (Option<f64>, Option<f64>) {
        let connection = Connection::open_in_memory().unwrap();
        define_part(&connection).unwrap();
        define_whole(&connection).unwrap();
        let rows: Vec<String> = values.iter().enumerate().map(|(at, value)| format!("({}, {value})", at / 2)).collect();
        let from = format!("(SELECT column1 AS part, column2 AS x FROM (VALUES {}))", rows.join(", "));
        let mean = |sql: String| connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        (
            mean(format!("SELECT avg(x) FROM {from}")),
            mean(format!("SELECT {WHOLE}(p) FROM (SELECT {PART}(x) AS p FROM {from} GROUP BY part)")),
        )
    }

    #[test]
    fn the_mean_of_parts_is_the_mean_of_all() {
        for values in [
            &["1", "2", "4", "NULL", "7"][..],
            &["NULL", "NULL", "NULL"],
            &["0.1", "0.2", "0.3", "1e300", "-1e300", "3"],
            &["9223372036854775807", "9223372036854775807", "9223372036854775807", "1"],
            &["9223372036854775807", "1", "-9223372036854775807", "-1", "5"],
            &["-9223372036854775808", "-9223372036854775808", "0.5"],
            &["9007199254740993", "0.5", "9007199254740993", "2"],
            &["1e308", "1e308", "1e308", "-1.0"],
            &["9e999", "1", "2.5", "3"],
        ] {
            let (one, parts) = means(values);
            assert_eq!(one, parts, "{values:?}");
        }
    }

    #[test]
    fn no_rows_have_no_mean() {
        let connection = Connection::open_in_memory().unwrap();
        define_part(&connection).unwrap();
        define_whole(&connection).unwrap();
        let sql = format!("SELECT {WHOLE}(p) FROM (SELECT {PART}(1) AS p WHERE 0)");
        assert_eq!(connection.query_row(&sql, [], |row| row.get::<_, Option<f64>>(0)), Ok(None));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let connection = Connection::open_in_memory().unwrap();
        define_part(&connection).unwrap();
        for value in ["'12'", "x'31'"] {
            let asked = connection.query_row(&format!("SELECT {PART}({value})"), [], |row| row.get::<_, Vec<u8>>(0));
            assert!(asked.unwrap_err().to_string().contains(NOT_A_NUMBER));
        }
    }
}
