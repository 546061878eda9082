//! Generates the gRPC stubs of the monitor service. There is no `.proto`: messages are CBOR (ADR 0001).

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let method = |name: &str, route: &str, input: &str, output: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(input)
            .output_type(output)
            .codec_path("crate::mon_api::CborCodec")
    };
    let service = Service::builder()
        .name("Monitor")
        .package("holdfast")
        .comment("Commands, questions and reports; maps; consensus between monitors.")
        .method(method("execute", "Execute", "holdfast_wire::mon::MonRequest", "holdfast_wire::mon::MonReply").build())
        .method(
            method("subscribe", "Subscribe", "holdfast_wire::mon::Subscribe", "holdfast_wire::mon::MapUpdate")
                .server_streaming()
                .build(),
        )
        .method(method("raft", "Raft", "crate::mon_api::RaftBytes", "crate::mon_api::RaftBytes").build())
        .build();
    Builder::new().compile(&[service]);
}
