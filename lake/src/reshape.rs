//! What the source's schema changes make of a lake table: the forms that its shards go through, and the Iceberg schema that holds
//! the columns of all that are in use.

use std::collections::HashMap;
use std::rc::Rc;

use iceberg::spec::{SchemaRef, TableMetadata, TableMetadataBuilder};

use crate::LakeError;
use crate::authority::Authority;
use crate::buffer::{Action, TableBuffer};
use crate::columns::{ColumnType, LakeColumn, LakeColumns, Source, Variant, with_columns};
use crate::forms::FormColumn;
use crate::misfits::Misfit;
use crate::options::TableOptions;
use crate::table::{FORMS, LakeTable, VARIANTS, metadata_path};

/// Stands for the shape of a change that has no rows, or whose rows the table has.
const NO_SHAPE: usize = usize::MAX;

/// How rows of one layout and form fill the table's columns.
pub(crate) struct Shape {
    /// Index into [`TableBuffer::layouts`].
    pub(crate) layout: usize,
    /// For each lake column, the place in the row of its value.
    pub(crate) sources: Vec<Option<usize>>,
}

/// The shapes of a flush's rows.
#[derive(Default)]
pub(crate) struct Shapes {
    pub(crate) shapes: Vec<Shape>,
    /// By change, the index of its rows' shape.
    of: Vec<usize>,
}

impl Shapes {
    /// The index of the shape of a change's rows; none of them where the columns are not the source's.
    pub(crate) fn of(&self, change: usize) -> usize {
        self.of.get(change).copied().unwrap_or(NO_SHAPE)
    }
}

impl LakeTable {
    /// Takes in the schema changes among these changes, and makes columns for the values that are to widen theirs. What that
    /// makes of the schema becomes part of the table with the next commit.
    pub(crate) fn follow(
        &mut self,
        buffered: &TableBuffer,
        changes: &[usize],
        widen: &[Misfit],
        options: &TableOptions,
    ) -> Result<Shapes, LakeError> {
        let mut last_id = self.next().last_column_id();
        let mut new_id = || {
            last_id += 1;
            last_id
        };
        let before = self.forms.clone();
        // (layout, number of the form)
        let mut seen: Vec<(usize, u64)> = Vec::new();
        let mut of = vec![NO_SHAPE; buffered.changes.len()];
        // The shards' present layouts.
        let mut current: Vec<(&Rc<str>, usize, usize)> = Vec::new();
        for number in changes {
            let change = &buffered.changes[*number];
            let (shard, lsn, layout) = (&change.shard, change.lsn, &buffered.layouts[change.layout]);
            match change.action {
                Action::Drop => {
                    self.forms.dropped(shard, lsn);
                    current.retain(|(of, ..)| !Rc::ptr_eq(of, shard));
                }
                Action::Reshape => {
                    self.forms.moved(shard, lsn, layout, &mut new_id);
                    current.retain(|(of, ..)| !Rc::ptr_eq(of, shard));
                }
                Action::Insert { .. } | Action::Update { .. } | Action::Delete { .. } => {
                    let known = current.iter().find(|(of, known, _)| *known == change.layout && Rc::ptr_eq(of, shard));
                    of[*number] = match known {
                        Some((.., shape)) => *shape,
                        None => {
                            let pair = (change.layout, self.forms.of_row(shard, lsn, layout, &mut new_id));
                            let shape = seen.iter().position(|known| *known == pair).unwrap_or_else(|| {
                                seen.push(pair);
                                seen.len() - 1
                            });
                            current.push((shard, change.layout, shape));
                            shape
                        }
                    };
                }
            }
        }
        for misfit in widen.iter().filter(|misfit| of[misfit.change] != NO_SHAPE) {
            let value = buffered.misfit(*misfit);
            let (_, form) = seen[of[misfit.change]];
            let column = self.forms.get(form).and_then(|form| form.get(misfit.place));
            if let Some((column_type, FormColumn(.., of))) = value.and_then(ColumnType::holding).zip(column)
                && !self.variants.iter().any(|known| known.of == *of && known.column_type == column_type)
            {
                self.variants.push(Variant { of: *of, column_type, id: new_id() });
                self.reshaped = true;
            }
        }
        self.evolve()?;
        self.arrange(options)?;
        let shape = |(layout, form)| Shape { layout, sources: self.forms.sources(form, &self.columns) };
        let shapes = seen.into_iter().map(shape).collect();
        self.forms.forget_old();
        self.reshaped |= self.forms != before;
        Ok(Shapes { shapes, of })
    }

    /// Has the schema hold the columns of all forms in use.
    fn evolve(&mut self) -> Result<(), LakeError> {
        let kept = self.arranged_by();
        let columns = self.forms.columns();
        let evolved = with_columns(self.schema(), &columns, &self.variants, &kept, &self.taken_names())?;
        if evolved.as_struct() == self.schema().as_struct() {
            return Ok(());
        }
        let newest = self.next().schemas_iter().map(|schema| schema.schema_id()).max().unwrap_or(0);
        let evolved = evolved.into_builder().with_schema_id(newest + 1).build()?;
        self.columns = LakeColumns::of_schema(&evolved, self.columns.key.clone(), &self.variants)?;
        let builder = TableMetadataBuilder::new_from_metadata(self.next().clone(), None);
        self.stage(builder.add_current_schema(evolved)?)
    }

    /// Keeps what a builder has made for the next commit.
    pub(crate) fn stage(&mut self, builder: TableMetadataBuilder) -> Result<(), LakeError> {
        self.staged = Some(self.updated_at(builder.build()?.metadata, 0)?);
        Ok(())
    }

    /// The column that a column of the source, or one that every lake table has, is now.
    pub(crate) fn column_named(&self, name: &str) -> Option<&LakeColumn> {
        let id = self.forms.id_named(name);
        self.columns.columns.iter().find(|column| match column.source {
            Source::Meta(_) => column.name == name,
            Source::Column(_) => Some(column.id) == id,
            Source::Variant { .. } => false,
        })
    }

    /// The schema that the next commit writes under.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.next().current_schema()
    }

    /// Begins the next metadata version, with what has become of schema, spec, order and forms.
    pub(crate) fn begin_version(&self) -> Result<TableMetadataBuilder, LakeError> {
        let mut builder = TableMetadataBuilder::new_from_metadata(self.next().clone(), Some(self.metadata_url()));
        if self.reshaped {
            let malformed = |error: serde_json::Error| LakeError::Malformed {
                path: self.directory.clone(),
                reason: error.to_string(),
            };
            let forms = serde_json::to_string(&self.forms).map_err(malformed)?;
            let mut properties = HashMap::from([(FORMS.to_owned(), forms)]);
            if !self.variants.is_empty() {
                properties.insert(VARIANTS.to_owned(), serde_json::to_string(&self.variants).map_err(malformed)?);
            }
            builder = builder.set_properties(properties)?;
        }
        Ok(builder)
    }

    /// Commits what has become of the schema, without a snapshot. On an error the table's state is unknown: it must be loaded
    /// anew.
    pub(crate) async fn commit_shape(&mut self, authority: &Authority, now_ms: u64) -> Result<(), LakeError> {
        let metadata = self.begin_version()?.build()?.metadata;
        let metadata = self.updated_at(metadata, now_ms)?;
        authority.commit(self, metadata).await?;
        self.staged = None;
        self.reshaped = false;
        Ok(())
    }

    /// The metadata as of this time. The builder would take the system's clock for what is not a snapshot.
    pub(crate) fn updated_at(&self, metadata: TableMetadata, now_ms: u64) -> Result<TableMetadata, LakeError> {
        let path = metadata_path(&self.directory, self.version + 1);
        let malformed =
            |error: serde_json::Error| LakeError::Malformed { path: path.clone(), reason: error.to_string() };
        let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX).max(self.metadata.last_updated_ms());
        let mut document = serde_json::to_value(&metadata).map_err(malformed)?;
        document["last-updated-ms"] = now_ms.into();
        serde_json::from_value(document).map_err(malformed)
    }
}
