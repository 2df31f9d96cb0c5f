//! Compiles `proto/*.proto` with protox (pure Rust: no `protoc` on the build machine).

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/model.proto", "proto/sync.proto", "proto/admin.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;

    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;

    let mut config = tonic_prost_build::Config::new();
    // Shared bytes are cloned by reference count; maps are ordered, so that equal values encode to
    // equal bytes (digests and no-op suppression depend on it).
    config.bytes(["."]).btree_map(["."]);
    config.enable_type_names();
    // It is written by hand, without the value.
    config.skip_debug(["bulrush.sync.v1.Secret"]);

    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
