//! Setting options of tables.

use dosql_proto::{Error, LakeConfigure, LakeOption, lake_reply, lake_request};

use crate::support::World;

/// Sets and resets options; answers with all of the table's.
pub(crate) fn configure(
    world: &mut World,
    table: &str,
    set: &[(&str, &str)],
    reset: &[&str],
) -> Result<Vec<LakeOption>, Error> {
    let option =
        |(name, value): &(&str, &str)| LakeOption { name: (*name).into(), value: (*value).into(), is_set: false };
    let request = LakeConfigure {
        table: table.into(),
        set: set.iter().map(option).collect(),
        reset: reset.iter().map(|name| (*name).into()).collect(),
    };
    match world.ask(lake_request::Request::Configure(request))? {
        lake_reply::Reply::Options(mut options) => Ok(options.tables.remove(0).options),
        other => panic!("not options: {other:?}"),
    }
}
