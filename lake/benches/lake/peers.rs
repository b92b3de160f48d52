//! Programs in Python that do the same work: `peers.py`, run by the interpreter that `DOSQL_PYTHON` names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// CPU seconds by what was done, in the order of the rounds.
pub(crate) type Taken = BTreeMap<String, Vec<f64>>;

/// Runs a peer.
///
/// # Panics
/// Where it fails, or there is no such interpreter.
pub(crate) fn run(arguments: &[&OsStr]) -> Taken {
    let python = std::env::var_os("DOSQL_PYTHON")
        .expect("DOSQL_PYTHON must name a Python that has the packages of tests/python/requirements.txt");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/lake/peers.py");
    let done = Command::new(python).arg("-B").arg(script).args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}
