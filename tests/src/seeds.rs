//! Which histories a randomised test goes through, and how they are told apart when they fail.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

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

/// Goes through the history of every seed, even where one fails, and returns what each told. Where there is only one seed, what
/// `RUST_LOG` asks for is logged.
///
/// # Panics
/// Where histories failed, by an error or by a panic: with all their seeds.
pub fn histories<T, E: Display>(seeds: &[u64], history: impl Fn(u64) -> Result<T, E>) -> Vec<T> {
    if let [_] = seeds {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        // Two tests of one program may come here.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).without_time().try_init();
    }
    let (mut told, mut failures) = (Vec::new(), Vec::new());
    for seed in seeds {
        let failure = match catch_unwind(AssertUnwindSafe(|| history(*seed))) {
            Ok(Ok(one)) => {
                told.push(one);
                continue;
            }
            Ok(Err(failure)) => format!("DOSQL_SEED={seed}: {failure}"),
            Err(panic) => format!("DOSQL_SEED={seed}: panicked: {}", message(&*panic)),
        };
        // At once, as the others may take hours.
        eprintln!("{failure}");
        failures.push(failure);
    }
    assert!(failures.is_empty(), "{} of {} histories failed:\n{}", failures.len(), seeds.len(), failures.join("\n"));
    told
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "with something that is no text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_and_panics_name_their_seeds() {
        let history = |seed: u64| match seed {
            3 => Err("it is wrong"),
            4 => panic!("it hangs after {seed}"),
            _ => Ok(seed),
        };
        assert_eq!(histories(&[1, 2], history), [1, 2]);
        let panic = catch_unwind(|| histories(&[1, 3, 4, 5], history)).unwrap_err();
        let said = message(&*panic);
        for expected in ["2 of 4", "DOSQL_SEED=3: it is wrong", "DOSQL_SEED=4: panicked: it hangs after 4"] {
            assert!(said.contains(expected), "{said}");
        }
    }
}
