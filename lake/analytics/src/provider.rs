//! A scan as a table of DataFusion: Parquet files, each with the rows that are not deleted.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::DFSchema;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{ParquetAccessPlan, RowGroupAccess};
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfigBuilder, ParquetFileReaderFactory, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use dosql_lake::scan::{Kept, ScanFile, kept};
use parquet::file::metadata::ParquetMetaData;

use crate::readers::Readers;

/// The files of one scan.
#[derive(Debug)]
pub(crate) struct ScannedTable {
    /// The fields that are read.
    pub(crate) schema: SchemaRef,
    pub(crate) files: Vec<PartitionedFile>,
    pub(crate) readers: Arc<Readers>,
}

#[async_trait]
impl TableProvider for ScannedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Statistics rule row groups out; the rows of the others are filtered afterwards.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let readers: Arc<dyn ParquetFileReaderFactory> = Arc::<Readers>::clone(&self.readers);
        let mut source = ParquetSource::new(Arc::clone(&self.schema)).with_parquet_file_reader_factory(readers);
        if let Some(filter) = conjunction(filters.to_vec()) {
            let schema = DFSchema::try_from(Arc::clone(&self.schema))?;
            source = source.with_predicate(state.create_physical_expr(filter, &schema)?);
        }
        let partitions = state.config().target_partitions().max(1).min(self.files.len().max(1));
        let mut groups = vec![Vec::new(); partitions];
        for (number, file) in self.files.iter().enumerate() {
            groups[number % partitions].push(file.clone());
        }
        // Every reader is one of ours, so the store of this URL is never asked.
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_groups(groups.into_iter().map(FileGroup::new).collect())
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// A file to be scanned, without its deleted rows.
pub(crate) fn partitioned(file: &ScanFile, footer: &ParquetMetaData) -> PartitionedFile {
    let partitioned = PartitionedFile::new(file.path.clone(), file.bytes);
    if file.deleted.is_empty() {
        return partitioned;
    }
    let groups = kept(&file.deleted, footer).into_iter().map(|kept| match kept {
        Kept::All => RowGroupAccess::Scan,
        Kept::Nothing => RowGroupAccess::Skip,
        Kept::Some(selection) => RowGroupAccess::Selection(selection),
    });
    partitioned.with_extension(ParquetAccessPlan::new(groups.collect()))
}
