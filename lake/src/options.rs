//! What an operator chooses for the lake tables of one source table.
//!
//! Options have names and values of text, the same whether they come as SQL, by HTTP or from a file, and are read and checked
//! here. What is not set has its default.

use std::collections::BTreeMap;

use crate::LakeError;
use crate::layout::{PartitionBy, SortBy};

/// What becomes of a value that does not fit its column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Misfits {
    /// The column is null, the row stands in `_misfit` and the value in the dead letters.
    #[default]
    Null,
    /// The value stands in a column of its own type beside its column.
    Widen,
    /// The table is not written before this is changed.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Codec {
    #[default]
    Zstd,
    Snappy,
}

/// How a data file is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileOptions {
    pub(crate) codec: Codec,
    /// Source columns with a Bloom filter.
    pub(crate) bloom_filters: Vec<String>,
    /// Whether each page has bounds, too.
    pub(crate) page_index: bool,
    /// Whether row groups and manifests have bounds.
    pub(crate) statistics: bool,
    /// Rows of a row group, where the table has a number of its own.
    pub(crate) row_group_size: Option<u64>,
    /// Bytes at which a file is finished, where the table has a number of its own.
    pub(crate) target_file_size: Option<u64>,
}

/// The options of one source table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableOptions {
    pub(crate) mirror: bool,
    pub(crate) changes: bool,
    pub(crate) misfits: Misfits,
    pub(crate) partition_by: Vec<PartitionBy>,
    pub(crate) sort_by: Vec<SortBy>,
    /// Whether compaction interleaves the sort columns' values instead.
    pub(crate) z_order: bool,
    pub(crate) files: FileOptions,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            mirror: true,
            changes: true,
            misfits: Misfits::default(),
            partition_by: vec![PartitionBy::Dt { column: None }],
            sort_by: Vec::new(),
            z_order: false,
            files: FileOptions {
                codec: Codec::default(),
                bloom_filters: Vec::new(),
                page_index: false,
                statistics: true,
                row_group_size: None,
                target_file_size: None,
            },
        }
    }
}

/// Options as they were set, by name.
pub(crate) type OptionTexts = BTreeMap<String, String>;

impl TableOptions {
    /// Every option's name and default, as text.
    pub(crate) const DEFAULTS: &[(&str, &str)] = &[
        ("mirror", "on"),
        ("changes", "on"),
        ("misfits", "null"),
        ("partition_by", "dt"),
        ("sort_by", ""),
        ("compaction_order", "sort"),
        ("compression", "zstd"),
        ("bloom_filters", ""),
        ("page_index", "off"),
        ("statistics", "on"),
        ("row_group_size", ""),
        ("target_file_size", ""),
    ];

    /// Reads them.
    ///
    /// # Errors
    /// The option that is unknown, or whose value cannot be used, and why.
    pub(crate) fn read(table: &str, texts: &OptionTexts) -> Result<Self, LakeError> {
        let mut options = Self::default();
        for (name, text) in texts {
            let read = options.set(name, text.trim());
            read.map_err(|reason| LakeError::Option { table: table.to_owned(), name: name.clone(), reason })?;
        }
        let refused = |name: &str, reason: &str| {
            Err(LakeError::Option { table: table.to_owned(), name: name.to_owned(), reason: reason.to_owned() })
        };
        if options.files.page_index && !options.files.statistics {
            return refused("page_index", "it needs statistics = on");
        }
        if options.z_order && options.sort_by.len() < 2 {
            return refused("compaction_order", "zorder needs two or more columns in sort_by");
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        match name {
            "mirror" => self.mirror = switch(text)?,
            "changes" => self.changes = switch(text)?,
            "misfits" => {
                self.misfits =
                    one_of(text, &[("null", Misfits::Null), ("widen", Misfits::Widen), ("stop", Misfits::Stop)])?;
            }
            "partition_by" => self.partition_by = PartitionBy::read(text)?,
            "sort_by" => self.sort_by = SortBy::read(text)?,
            "compaction_order" => self.z_order = one_of(text, &[("sort", false), ("zorder", true)])?,
            "compression" => self.files.codec = one_of(text, &[("zstd", Codec::Zstd), ("snappy", Codec::Snappy)])?,
            "bloom_filters" => self.files.bloom_filters = names(text)?,
            "page_index" => self.files.page_index = switch(text)?,
            "statistics" => self.files.statistics = switch(text)?,
            "row_group_size" => self.files.row_group_size = number(text, 1, 1 << 32)?,
            "target_file_size" => self.files.target_file_size = number(text, 1024, 1 << 34)?,
            _ => {
                let known: Vec<&str> = Self::DEFAULTS.iter().map(|(name, _)| *name).collect();
                return Err(format!("there is no such option; there are {}", known.join(", ")));
            }
        }
        Ok(())
    }
}

fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    match choices.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)) {
        Some((_, choice)) => Ok(*choice),
        None => {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            Err(format!("{text:?} is not one of {}", names.join(", ")))
        }
    }
}

fn switch(text: &str) -> Result<bool, String> {
    one_of(text, &[("on", true), ("off", false), ("true", true), ("false", false)])
}

fn number(text: &str, least: u64, most: u64) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
        _ => Err(format!("{text:?} is not a whole number from {least} to {most}")),
    }
}

fn names(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    match names.as_slice() {
        [only] if only.is_empty() => Ok(Vec::new()),
        _ if names.iter().any(String::is_empty) => Err(format!("{text:?} lacks the name of a column")),
        _ => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[(&str, &str)]) -> Result<TableOptions, String> {
        let texts = texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        TableOptions::read("t", &texts).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_what_they_are_said_to_be() {
        assert_eq!(read(TableOptions::DEFAULTS), Ok(TableOptions::default()));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (name, text, reason) in [
            ("mirrors", "on", "there is no such option"),
            ("mirror", "maybe", "not one of on, off"),
            ("misfits", "drop", "not one of null, widen, stop"),
            ("row_group_size", "0", "from 1 to"),
            ("bloom_filters", "a,,b", "lacks the name"),
            ("compaction_order", "zorder", "two or more columns"),
            ("partition_by", "bucket(x, id)", "bucket"),
            ("sort_by", "id upwards", "upwards"),
        ] {
            let error = read(&[(name, text)]).unwrap_err();
            assert!(error.contains(name) && error.contains(reason) && error.contains('t'), "{error}");
        }
        assert!(read(&[("page_index", "on"), ("statistics", "off")]).unwrap_err().contains("statistics = on"));
    }
}
