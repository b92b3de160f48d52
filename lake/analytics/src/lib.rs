//! Reads of the lake through DataFusion: columnar and vectorised, for hosts that have threads and memory to spare. On Durable
//! Objects, whose module size DataFusion would burst, the lake's own pruned scans serve instead.
