//! Which partitions rows go to, and in which order.

use iceberg::spec::Struct;

use crate::LakeError;
use crate::columns::LakeColumns;
use crate::images::{ImageId, Images};
use crate::partition::{Known, Partition};
use crate::record_batch::record_batch;
use crate::reshape::Shape;
use crate::sorting::{How, sorted};
use crate::table::LakeTable;

/// Rows that are turned into columns at a time.
const BATCH_ROWS: usize = 32_768;

/// What arranges the rows of a flush.
pub(crate) struct Arrangement<'a> {
    pub(crate) table: &'a LakeTable,
    pub(crate) images: &'a Images<'a>,
}

impl Arrangement<'_> {
    /// The partitions of rows, and for each row the index of its own.
    pub(crate) fn partitions(&self, rows: &[ImageId]) -> Result<(Vec<Partition>, Vec<u32>), LakeError> {
        let (mut known, mut found) = (Known::default(), Vec::with_capacity(rows.len()));
        if self.table.partition_of_day(0).is_some() {
            // What most tables have needs no columns. Changes come in runs of one day.
            let mut last: Option<(i32, u32)> = None;
            for row in rows {
                let day = self.images.buffered.changes[row.change as usize].day();
                let place = match last {
                    Some((of, place)) if of == day => place,
                    _ => self.table.partition_of_day(day).map_or(0, |partition| known.place(partition)),
                };
                last = Some((day, place));
                found.push(place);
            }
        } else {
            let partitioner = self.table.partitioner()?;
            if partitioner.places.is_empty() {
                let whole = Partition { spec_id: partitioner.spec_id, values: Struct::empty() };
                found.resize(rows.len(), known.place(whole));
                return Ok((known.partitions, found));
            }
            let (columns, shapes) = self.only(&partitioner.places);
            for rows in rows.chunks(BATCH_ROWS) {
                let batch = record_batch(&columns, self.images, &shapes, rows)?;
                partitioner.partitions(&batch, &mut known, &mut found)?;
            }
        }
        Ok((known.partitions, found))
    }

    /// Puts rows into the order that they have in a file.
    pub(crate) fn sort(&self, rows: &mut Vec<ImageId>) -> Result<(), LakeError> {
        let columns = self.table.sort_columns();
        if columns.is_empty() || rows.len() < 2 {
            return Ok(());
        }
        let places: Vec<usize> = columns.iter().map(|(place, ..)| *place).collect();
        let how: Vec<How> = columns.iter().map(|(_, direction, nulls)| (*direction, *nulls)).collect();
        let (columns, shapes) = self.only(&places);
        let batch = record_batch(&columns, self.images, &shapes, rows)?;
        let order = sorted(&batch, &how)?;
        *rows = order.values().iter().map(|row| rows[*row as usize]).collect();
        Ok(())
    }

    /// These columns, and how they are filled.
    fn only(&self, places: &[usize]) -> (LakeColumns, Vec<Shape>) {
        let shape = |shape: &Shape| Shape {
            layout: shape.layout,
            sources: places.iter().map(|place| shape.sources[*place]).collect(),
        };
        (self.table.columns.only(places), self.images.shapes.shapes.iter().map(shape).collect())
    }
}
