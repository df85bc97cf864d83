//! Adapters that leave as public files and public LoRAs that come in.

use super::support::*;
use empathd_model::adapter::Mixture;
use empathd_model::tiny;
use empathd_proto::engine::{EngineFailure, FromEngineBody, MixtureSpec, PeftFile, ToEngineBody};
use empathd_proto::ids::AdapterId;
use empathd_proto::record::Domain;
use std::collections::BTreeMap;

/// Every file of the adapter in memory.
fn exported(daemon: &mut Daemon) -> BTreeMap<String, Vec<u8>> {
    let tag = daemon.open(ToEngineBody::Export { adapter: ADAPTER, base_name: "some/base".into() });
    let mut all = BTreeMap::new();
    loop {
        let message = daemon.read();
        assert_eq!(message.tag, tag);
        match message.body {
            FromEngineBody::File { path, blob } => {
                let is_inside = !path.starts_with('/') && path.split('/').all(|part| !part.is_empty() && part != "..");
                assert!(is_inside, "{path}");
                let bytes = daemon.chunks(blob, &mut Vec::new());
                assert!(all.insert(path, bytes).is_none());
            }
            FromEngineBody::Exported { files } => {
                assert_eq!(files as usize, all.len());
                return all;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Begins an import of these two files; its tag.
fn import(daemon: &mut Daemon, onto: Option<AdapterId>, config: &[u8], weights: &[u8]) -> u64 {
    let domain = Some(Domain::Crisis);
    let tag = daemon.open(ToEngineBody::Import { onto, domain, attention_to_shared: false });
    for (file, bytes) in [(PeftFile::Config, config), (PeftFile::Weights, weights)] {
        daemon.send(tag, ToEngineBody::ImportFile { file, blob: head(bytes) });
        daemon.send_chunks(tag, bytes);
    }
    daemon.send(tag, ToEngineBody::Go);
    tag
}

fn imported(daemon: &mut Daemon) -> (Vec<u8>, MixtureSpec) {
    let bytes = match daemon.read().body {
        FromEngineBody::Adapter { blob } => daemon.chunks(blob, &mut Vec::new()),
        other => panic!("{other:?}"),
    };
    match daemon.read().body {
        FromEngineBody::Imported(spec) => (bytes, spec),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_expert_leaves_and_comes_back_as_one_more() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    assert!(matches!(daemon.put_adapter(&engine.adapter(1)), FromEngineBody::AdapterReady));
    let files = exported(&mut daemon);
    let folder =
        files.keys().find_map(|path| path.strip_suffix("/adapter_config.json").filter(|f| f.starts_with("experts/")));
    let folder = folder.expect("there are experts").to_owned();
    let file = |name: &str| files[&format!("{folder}/{name}")].as_slice();
    let (config, weights) = (file("adapter_config.json"), file("adapter_model.safetensors"));
    import(&mut daemon, Some(ADAPTER), config, weights);
    let (bytes, spec) = imported(&mut daemon);
    let before = Mixture::from_bytes(&engine.adapter(1), &tiny::config(), engine.sha256).expect("ours");
    assert_eq!(spec.experts.len(), before.spec().experts.len() + 1);
    assert_eq!(spec.experts.last(), Some(&Some(Domain::Crisis)));
    assert!(matches!(daemon.put_adapter(&bytes), FromEngineBody::AdapterReady), "it serves at once");
    import(&mut daemon, None, config, weights);
    assert_eq!(imported(&mut daemon).1.experts, [Some(Domain::Crisis)], "by itself it is a mixture of one");
}

#[test]
fn files_that_do_not_fit_end_their_own_work_alone() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let tag = daemon.open(ToEngineBody::Export { adapter: ADAPTER, base_name: String::new() });
    assert_eq!(daemon.failure(tag), EngineFailure::UnknownAdapter(ADAPTER));
    let tag = import(&mut daemon, Some(ADAPTER), b"{}", b"x");
    assert_eq!(daemon.failure(tag), EngineFailure::UnknownAdapter(ADAPTER));
    let tag = import(&mut daemon, None, br#"{"peft_type":"LORA","r":2,"lora_alpha":2,"use_dora":true}"#, b"x");
    match daemon.failure(tag) {
        EngineFailure::BadAdapter(words) => assert!(words.contains("use_dora"), "{words}"),
        other => panic!("{other:?}"),
    }
    let ask = ToEngineBody::Import { onto: None, domain: None, attention_to_shared: false };
    let tag = daemon.open(ask);
    daemon.send(tag, ToEngineBody::Go);
    assert!(matches!(daemon.failure(tag), EngineFailure::Protocol(_)), "without files");
    let tag = daemon.open(ToEngineBody::Import { onto: None, domain: None, attention_to_shared: false });
    let mut endless = head(b"{}");
    endless.bytes = 1 << 20;
    daemon.send(tag, ToEngineBody::ImportFile { file: PeftFile::Config, blob: endless });
    assert!(matches!(daemon.failure(tag), EngineFailure::BadAdapter(_)), "refused before it is here");
    assert!(matches!(daemon.put_adapter(&engine.adapter(2)), FromEngineBody::AdapterReady), "others go on");
}
