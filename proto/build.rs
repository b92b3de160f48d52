//! Compiles the `.proto` files with protox, a compiler in Rust, so that nobody needs `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from("proto");
    let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("dosql/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    println!("cargo:rerun-if-changed=proto");

    let descriptors = protox::compile(&files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // gRPC server reflection serves this file.
    std::fs::write(out.join("dosql.v1.descriptors.bin"), {
        use prost::Message as _;
        descriptors.encode_to_vec()
    })?;

    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .bytes(".dosql.v1.Packet")
        .bytes(".dosql.v1.PacketReply")
        .compile_fds(descriptors)?;
    Ok(())
}
