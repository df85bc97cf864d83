//! Embeddings with a tiny random encoder: what a vector is, and what no file may do.

use super::*;
use proptest::prelude::*;

fn parts() -> [Vec<u8>; 3] {
    let [(_, weights), (_, config), (_, tokenizer)] = tiny::files(3);
    [config, tokenizer, weights]
}

fn made([config, tokenizer, weights]: &[Vec<u8>; 3]) -> Result<Embedder, EmbedError> {
    Embedder::from_bytes(config, tokenizer, weights)
}

fn embedder() -> Embedder {
    made(&parts()).expect("usable")
}

fn tokens(embedder: &Embedder, text: &str) -> Vec<u32> {
    embedder.read(&[text.to_owned()]).expect("short").remove(0)
}

#[test]
fn texts_become_pieces_between_two_tokens() {
    let embedder = embedder();
    assert_eq!(tokens(&embedder, "Sleepless NIGHTS."), [2, 4, 5, 6, 7, 9, 3]);
    assert_eq!(tokens(&embedder, ""), [2, 3]);
    // Brackets are punctuation: nobody writes an end of text into a text.
    assert_eq!(tokens(&embedder, "[SEP]"), [2, 1, 1, 1, 3]);
}

#[test]
fn a_vector_has_length_one_and_depends_on_its_own_tokens_in_order() {
    let embedder = embedder();
    assert_eq!((embedder.width(), embedder.tokens_max()), (tiny::WIDTH, tiny::TOKENS_MAX));
    let vector = |text: &str| embedder.vector(&tokens(&embedder, text)).expect("numbers");
    let first = vector("sleepless nights");
    assert_eq!(first.len(), tiny::WIDTH);
    assert!((first.iter().map(|number| number * number).sum::<f32>() - 1.0).abs() < 1e-6);
    assert_ne!(first, vector("nights sleepless"));
    assert_eq!(first, vector("sleepless nights"));
}

#[test]
fn what_does_not_fit_is_refused_with_its_place_and_the_limit() {
    let embedder = embedder();
    let texts = |long: &str| embedder.read(&["i".to_owned(), long.to_owned()]);
    assert!(texts(&"i ".repeat(tiny::TOKENS_MAX - 2)).is_ok());
    let error = texts(&"i ".repeat(tiny::TOKENS_MAX - 1)).expect_err("too long");
    assert_eq!(error.to_string(), "input[1] has 25 tokens, the limit is 24");
    let bytes = MAX_EMBED_BYTES + 1;
    assert_eq!(texts(&"x".repeat(bytes)).expect_err("too long"), EmbedError::TextBytes { index: 1, bytes });
    let many = MAX_EMBED_TEXTS + 1;
    assert_eq!(embedder.read(&vec![String::new(); many]).expect_err("too many"), EmbedError::Texts(many));
    for wrong in [vec![], vec![10], vec![0; tiny::TOKENS_MAX + 1]] {
        assert_eq!(embedder.vector(&wrong).expect_err("no tokens of the model"), EmbedError::Tokens);
    }
}

#[test]
fn files_are_opened_by_digest_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().expect("scratch");
    let files = tiny::files(3);
    for (name, bytes) in &files {
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    let path = folder.path().join(tiny::WEIGHTS_FILE);
    let sha256 = Sha256::digest(&files[0].1).into();
    assert!(Embedder::open(&path, sha256).is_ok());
    assert_eq!(Embedder::open(&path, [0; 32]).expect_err("another file"), EmbedError::Digest);
    std::fs::remove_file(folder.path().join(CONFIG_FILE)).expect("removed");
    let words = Embedder::open(&path, sha256).expect_err("incomplete").to_string();
    assert!(words.starts_with("config.json cannot be read"), "{words}");
    assert!(matches!(Embedder::open(folder.path(), sha256), Err(EmbedError::Unusable { .. })));
}

/// The parts with one spelling in `config.json` or `tokenizer.json` replaced.
fn with(from: &str, to: &str) -> Result<Embedder, EmbedError> {
    let mut parts = parts();
    let mut places = 0;
    for part in &mut parts[..2] {
        let text = String::from_utf8(part.clone()).expect("text");
        places += text.matches(from).count();
        *part = text.replace(from, to).into_bytes();
    }
    assert!(places > 0, "{from}");
    made(&parts)
}

#[test]
fn hostile_descriptions_are_refused_by_the_name_of_their_file() {
    let hostile = [
        ("\"hidden_size\":16", "\"hidden_size\":0", CONFIG_FILE),
        ("\"hidden_size\":16", "\"hidden_size\":18446744073709551615", CONFIG_FILE),
        ("\"num_attention_heads\":4", "\"num_attention_heads\":5", CONFIG_FILE),
        ("\"num_attention_heads\":4", "\"num_attention_heads\":0", CONFIG_FILE),
        ("\"num_hidden_layers\":2", "\"num_hidden_layers\":4000000000", CONFIG_FILE),
        ("\"layer_norm_eps\":1e-12", "\"layer_norm_eps\":-1.0", CONFIG_FILE),
        ("\"bert\"", "\"t5\"", CONFIG_FILE),
        ("\"absolute\"", "\"relative_key\"", CONFIG_FILE),
        ("\"vocab_size\":10", "\"vocab_size\":9", TOKENIZER_FILE),
        ("[CLS]", "[XXX]", TOKENIZER_FILE),
        ("\"unk_token\":\"[UNK]\"", "\"unk_token\":\"?\"", TOKENIZER_FILE),
        ("BertPreTokenizer", "Split", TOKENIZER_FILE),
        ("\"max_input_chars_per_word\":100", "\"max_input_chars_per_word\":100000000", TOKENIZER_FILE),
        ("\"hidden_size\":16", "\"hidden_size\":32", "the file of weights"),
        ("\"num_hidden_layers\":2", "\"num_hidden_layers\":3", "the file of weights"),
    ];
    for (from, to, expected) in hostile {
        match with(from, to).map(|embedder| embedder.width()) {
            Err(EmbedError::Unusable { file, .. }) => assert_eq!(file, expected, "{to}"),
            other => panic!("{to}: {other:?}"),
        }
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let [config, tokenizer, mut weights] = parts();
    let last = weights.len() - 4;
    weights[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(made(&[config, tokenizer, weights]).expect_err("no numbers"), EmbedError::NotFinite);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn no_altered_file_ends_the_process(
        part in 0usize..3,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut parts = parts();
        let bytes = &mut parts[part];
        // Most of a file of weights is numbers; its header is what can be hostile.
        let reach = bytes.len().min(4096);
        for (place, byte) in edits {
            bytes[place.index(reach)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(embedder) = made(&parts)
            && let Ok(texts) = embedder.read(&["i sleep".to_owned()])
        {
            match embedder.vector(&texts[0]) {
                Ok(vector) => prop_assert_eq!(vector.len(), embedder.width()),
                Err(error) => prop_assert_eq!(error, EmbedError::NotFinite),
            }
        }
    }
}
