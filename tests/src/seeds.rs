//! Which histories a randomised test goes through.

/// Seeds 0, 1, 2, ... as many as `DOSQL_SEEDS` says, else `number`, from `DOSQL_FIRST_SEED` on where that is set; or the one
/// that `DOSQL_SEED` names, to replay a failure.
///
/// # Panics
/// Where a variable is set to something that is not a number.
#[must_use]
pub fn seeds(number: u64) -> Vec<u64> {
    let variable = |name: &str| -> Option<u64> {
        let text = std::env::var(name).ok()?;
        match text.parse() {
            Ok(number) => Some(number),
            Err(_) => panic!("{name}={text:?} is not a number"),
        }
    };
    match variable("DOSQL_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = variable("DOSQL_FIRST_SEED").unwrap_or(0);
            (first..first + variable("DOSQL_SEEDS").unwrap_or(number)).collect()
        }
    }
}
