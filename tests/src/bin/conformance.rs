//! Runs the conformance suite against a host over HTTP: `conformance 127.0.0.1:8787`.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use dosql_tests::conformance::http::HttpTarget;
use futures_util::FutureExt;

fn main() -> ExitCode {
    let Some(authority) = std::env::args().nth(1) else {
        eprintln!("usage: conformance HOST:PORT");
        return ExitCode::from(2);
    };
    // Names of its own, so that a host which keeps its data can be tested again.
    let run = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis());
    let target = HttpTarget::new(authority);
    // Everything below blocks, so the future never waits.
    let Some(report) = dosql_tests::conformance::run(&target, &format!("run-{run}")).now_or_never() else {
        eprintln!("the suite waited for something other than the host");
        return ExitCode::FAILURE;
    };
    for case in &report.passed {
        println!("ok      {case}");
    }
    for (case, how) in &report.failed {
        println!("FAILED  {case}: {how}");
    }
    println!("{} passed, {} failed", report.passed.len(), report.failed.len());
    if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
