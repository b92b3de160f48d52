//! Footers of Parquet files: read once, and remembered.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use dosql_actors::ObjectStore;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::{ScanFile, bytes_of};
use crate::LakeError;

/// Bytes at the end of a file that are read at first.
const FIRST_BYTES: u64 = 64 << 10;
/// Footers that are remembered.
const KEPT: usize = 4_096;

/// Reads and remembers footers. Files never change.
pub struct Footers {
    objects: Rc<dyn ObjectStore>,
    known: RefCell<HashMap<String, Arc<ParquetMetaData>>>,
}

impl Footers {
    /// Of these objects.
    #[must_use]
    pub fn new(objects: Rc<dyn ObjectStore>) -> Self {
        Self { objects, known: RefCell::default() }
    }

    /// A file's footer.
    ///
    /// # Errors
    /// Where the file cannot be read, or is none of Parquet's.
    pub async fn of(&self, file: &ScanFile) -> Result<Arc<ParquetMetaData>, LakeError> {
        if let Some(footer) = self.known.borrow().get(&file.path) {
            return Ok(Arc::clone(footer));
        }
        let mut wanted = FIRST_BYTES.min(file.bytes);
        let footer = loop {
            let tail = bytes_of(&*self.objects, &file.path, file.bytes - wanted..file.bytes).await?;
            let mut reader = ParquetMetaDataReader::new();
            match reader.try_parse_sized(&tail, file.bytes) {
                Ok(()) => break Arc::new(reader.finish()?),
                Err(ParquetError::NeedMoreData(more)) if wanted < file.bytes => {
                    wanted = (more as u64).clamp(wanted + 1, file.bytes);
                }
                Err(error) => return Err(error.into()),
            }
        };
        let mut known = self.known.borrow_mut();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(file.path.clone(), Arc::clone(&footer));
        Ok(footer)
    }
}
