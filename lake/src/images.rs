//! The rows that are to be written: images out of the buffered changes.

use arrow::array::ArrayRef;

use crate::buffer::{Action, Change, TableBuffer};
use crate::misfits::Misfit;
use crate::reshape::Shapes;
use crate::rows::RowRef;

/// One row to be written: an image out of a change.
#[derive(Clone, Copy)]
pub(crate) struct Image<'a> {
    pub(crate) change: &'a Change,
    /// `None` where the change is about no row.
    pub(crate) row: Option<RowRef<'a>>,
    /// The index of the row's [`Shape`](crate::reshape::Shape).
    pub(crate) shape: usize,
    /// For the change log's `_operation`.
    pub(crate) operation: &'static str,
    /// In the dead letters, the place in the row of the value that the letter is about.
    pub(crate) letter: Option<usize>,
}

/// Stands for an image: a flush may have many, and holds these.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageId {
    /// The change's number. A buffer has fewer than 2^32 changes, of which each takes a hundred bytes.
    pub(crate) change: u32,
    which: Which,
}

/// Which image of a change.
#[derive(Debug, Clone, Copy)]
enum Which {
    Before,
    After,
    /// That the table was dropped.
    Dropped,
    /// The one after it, of which the value at this place did not fit.
    Letter(u32),
}

impl ImageId {
    pub(crate) fn after(change: u32) -> Self {
        Self { change, which: Which::After }
    }

    pub(crate) fn letter(misfit: Misfit) -> Self {
        Self { change: misfit.change as u32, which: Which::Letter(misfit.place as u32) }
    }
}

/// The images of a flush.
pub(crate) struct Images<'a> {
    pub(crate) buffered: &'a TableBuffer,
    pub(crate) shapes: &'a Shapes,
    /// By layout, the columns of its rows.
    pub(crate) arrays: &'a [Vec<ArrayRef>],
}

impl<'a> Images<'a> {
    /// A change's rows in the change log.
    pub(crate) fn of_change(&self, number: usize) -> impl Iterator<Item = ImageId> {
        let image = |which| Some(ImageId { change: number as u32, which });
        let (first, second) = match &self.buffered.changes[number].action {
            Action::Insert { .. } => (image(Which::After), None),
            Action::Delete { .. } => (image(Which::Before), None),
            Action::Update { .. } => (image(Which::Before), image(Which::After)),
            Action::Drop => (image(Which::Dropped), None),
            Action::Reshape => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// The image after a change, where it leaves a row.
    pub(crate) fn after(&self, number: usize) -> Option<ImageId> {
        match &self.buffered.changes[number].action {
            Action::Insert { .. } | Action::Update { .. } => Some(ImageId::after(number as u32)),
            Action::Delete { .. } | Action::Drop | Action::Reshape => None,
        }
    }

    /// The images themselves.
    pub(crate) fn get(&self, ids: &[ImageId]) -> Vec<Image<'a>> {
        ids.iter().map(|id| self.image(*id)).collect()
    }

    fn image(&self, id: ImageId) -> Image<'a> {
        let change = &self.buffered.changes[id.change as usize];
        let (image, operation) = match (change.action, id.which) {
            (Action::Update { before, .. }, Which::Before) => (Some(before), "update_before"),
            (Action::Delete { before }, _) => (Some(before), "delete"),
            (Action::Insert { after }, _) => (Some(after), "insert"),
            (Action::Update { after, .. }, _) => (Some(after), "update_after"),
            (Action::Drop | Action::Reshape, _) => (None, "drop_table"),
        };
        let row = image.map(|image| self.buffered.row(change, image));
        let letter = match id.which {
            Which::Letter(place) => Some(place as usize),
            _ => None,
        };
        Image { change, row, shape: self.shapes.of(id.change as usize), operation, letter }
    }
}
