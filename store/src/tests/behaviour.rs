//! What the store does for its caller on a sound disk.

use super::support::*;
use crate::error::*;
use crate::keys::{Purpose, ROTATE_AFTER_SEALS, Shared};
use crate::tables::Table;
use crate::tiles;
use crate::{CutRule, DataClass, DocKind, KdfCost, NewAdapter, NewRecord, PutOutcome, Store, backend, blobs};
use empathd_proto::audit::tile::TileAt;
use empathd_proto::audit::{ActionKind, leaf_hash, verify_consistency, verify_inclusion};
use empathd_proto::report::AdapterState;
use empathd_proto::{AdapterId, ClientId, DatasetId, JobId, RecordId, Secret};
use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

#[test]
fn a_sealed_store_gives_and_takes_nothing_until_the_right_passphrase() {
    let (dir, store) = new_store(1);
    let id = stored(change(&store, |writer| put(writer, "someone", b"words")));
    assert!(store.shared().keys.bytes().iter().any(|byte| *byte != 0));
    store.seal(draft(ActionKind::Seal)).expect("sealed");
    assert!(store.shared().keys.bytes().iter().all(|byte| *byte == 0), "keys stayed in memory");
    assert!(matches!(store.read(|reader| reader.record(id)), Err(ReadError::Sealed)));
    assert!(matches!(store.change(draft(ActionKind::Ingest), |_, _| Ok::<_, WriteError>(())), Err(WriteError::Sealed)));
    assert!(matches!(store.record_audit(&[draft(ActionKind::Chat)]), Err(WriteError::Sealed)));

    let wrong = store.unseal(&Secret::new("a passphrase of testz".into()), draft(ActionKind::Unseal));
    assert!(matches!(wrong, Err(UnsealError::WrongPassphrase)));
    assert!(!store.is_unsealed());
    store.unseal(&passphrase(), draft(ActionKind::Unseal)).expect("unsealed");
    assert!(matches!(store.unseal(&passphrase(), draft(ActionKind::Unseal)), Err(UnsealError::AlreadyUnsealed)));
    let record = store.read(|reader| reader.record(id)).expect("read").expect("there");
    assert_eq!(record.body.as_slice(), b"words");
    let shown = format!("{store:?} {record:?}");
    assert!(!shown.contains("words"));

    let second = Store::open(&state(&dir), Arc::new(SeededEntropy::new(9))).expect("opened");
    assert!(matches!(second.unseal(&passphrase(), draft(ActionKind::Unseal)), Err(UnsealError::InUse)));
}

#[test]
fn a_store_is_made_once_and_never_over_another() {
    let (dir, store) = new_store(1);
    let make = |passphrase: &Secret| {
        Store::create(
            &state(&dir),
            passphrase,
            KdfCost::Light,
            Arc::new(SeededEntropy::new(2)),
            draft(ActionKind::Init),
        )
    };
    assert!(matches!(make(&Secret::new(String::new())), Err(CreateError::EmptyPassphrase)));
    assert!(matches!(make(&passphrase()), Err(CreateError::Exists)));
    store.close(draft(ActionKind::Stop)).expect("closed");
    fs::remove_file(state(&dir).join("keyring")).expect("removed");
    assert!(matches!(make(&passphrase()), Err(CreateError::KeyringMissing)));
    let opened = Store::open(&state(&dir), Arc::new(SeededEntropy::new(3)));
    assert!(matches!(opened, Err(OpenError::NotInitialised)));
    // A creation that was cut short, on the other hand, is begun anew.
    fs::write(state(&dir).join("keyring.new"), b"half").expect("written");
    make(&passphrase()).expect("created");
}

#[test]
fn another_format_of_the_database_is_told() {
    let (dir, store) = new_store(1);
    drop(store);
    raw_change(&dir, |txn| {
        let mut anchor = txn.open_table(raw_table("anchor")).expect("table");
        anchor.insert(b"format".as_slice(), 3u32.to_le_bytes().as_slice()).expect("put");
    });
    let store = Store::open(&state(&dir), Arc::new(SeededEntropy::new(2))).expect("opened");
    let unsealed = store.unseal(&passphrase(), draft(ActionKind::Unseal));
    assert!(matches!(unsealed, Err(UnsealError::Version { found: 3, supported: 2 })));
    assert!(store.shared().keys.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn a_content_is_stored_once_and_a_client_is_one_person() {
    let (dir, store) = new_store(1);
    let first = change(&store, |writer| put(writer, "mrn 1", b"the same words"));
    let PutOutcome::Stored(id) = first else { panic!("stored first") };
    assert_eq!(change(&store, |writer| put(writer, "mrn 2", b"the same words")), PutOutcome::Duplicate(id));
    let (one, other) = change(&store, |writer| Ok((writer.client_for("mrn 1")?, writer.client_for("mrn 2")?)));
    assert_ne!(one, other);
    store.close(draft(ActionKind::Stop)).expect("closed");

    let store = reopen(&dir, 2);
    assert_eq!(change(&store, |writer| writer.client_for("mrn 1")), one);
    assert_eq!(change(&store, |writer| put(writer, "mrn 1", b"the same words")), PutOutcome::Duplicate(id));
    assert_eq!(store.read(|reader| reader.record_count()).expect("counted"), 1);
    let stranger = store.change(draft(ActionKind::Ingest), |writer, _| {
        let client = ClientId::from_bytes([9; 16]);
        writer.put_record(NewRecord { client, class: DataClass::Record, content_key: [9; 32], body: b"x" })
    });
    assert!(matches!(stranger, Err(WriteError::NotFound("client"))));
}

#[test]
fn a_class_is_read_alone() {
    let (_dir, store) = new_store(1);
    let note = change(&store, |writer| {
        put(writer, "someone", b"a transcript")?;
        let client = writer.client_for("someone")?;
        let class = DataClass::PsychotherapyNote;
        writer.put_record(NewRecord { client, class, content_key: [1; 32], body: b"a note" })
    });
    let mut seen = Vec::new();
    let walk = store.read(|reader| {
        reader.records(DataClass::PsychotherapyNote, &mut |id, _, body| {
            seen.push((id, body.to_vec()));
            ControlFlow::Continue(())
        })
    });
    walk.expect("walked");
    assert_eq!(seen, [(stored(note), b"a note".to_vec())]);
}

#[test]
fn documents_are_replaced_listed_and_dropped() {
    let (_dir, store) = new_store(1);
    change(&store, |writer| {
        writer.put_doc(DocKind::Job, [2; 16], b"second")?;
        writer.put_doc(DocKind::Job, [1; 16], b"first")?;
        writer.put_doc(DocKind::Cert, [1; 16], b"certificate")?;
        writer.put_doc(DocKind::Job, [1; 16], b"")?;
        assert!(!writer.drop_doc(DocKind::Setting, [1; 16])?);
        Ok(())
    });
    let jobs = store.read(|reader| reader.docs(DocKind::Job)).expect("listed");
    let jobs: Vec<_> = jobs.iter().map(|(id, body)| (id[0], body.as_slice())).collect();
    assert_eq!(jobs, [(1, b"".as_slice()), (2, b"second".as_slice())]);
    assert!(change(&store, |writer| writer.drop_doc(DocKind::Job, [1; 16])));
    assert!(store.read(|reader| reader.doc(DocKind::Job, [1; 16])).expect("read").is_none());
    assert!(store.read(|reader| reader.doc(DocKind::Cert, [1; 16])).expect("read").is_some());
}

#[test]
fn every_change_has_its_entry_and_a_failed_one_has_nothing() {
    let (_dir, store) = new_store(1);
    let before = store.checkpoint().expect("signed").verify().expect("authentic");
    let failed = store.change(draft(ActionKind::Ingest), |writer, _| {
        writer.put_doc(DocKind::Job, [1; 16], b"never")?;
        Err::<(), _>(WriteError::Invalid("stop"))
    });
    assert!(failed.is_err());
    assert!(store.read(|reader| reader.doc(DocKind::Job, [1; 16])).expect("read").is_none());
    store
        .change(draft(ActionKind::Ingest), |_, audit| {
            audit.count = 7;
            Ok::<_, WriteError>(())
        })
        .expect("changed");
    store.record_audit(&[draft(ActionKind::Chat), draft(ActionKind::Status)]).expect("recorded");
    store.record_audit(&[]).expect("nothing to record");

    let tail = store.audit_tail(3).expect("read");
    let shown: Vec<_> = tail.iter().map(|entry| (entry.seq, entry.action, entry.count)).collect();
    assert_eq!(shown, [(1, ActionKind::Ingest, 7), (2, ActionKind::Chat, 1), (3, ActionKind::Status, 1)]);
    assert_eq!(store.audit_tail(99).expect("read").len(), 4);
    let after = store.checkpoint().expect("signed").verify().expect("authentic");
    let proof = store.consistency_proof(before.size).expect("proved");
    assert!(verify_consistency(before.size, &before.root, after.size, &after.root, &proof));
    assert!(matches!(store.consistency_proof(5), Err(ReadError::NotFound(_))));
    let found = store.verify_audit(&mut |_, _| {}).expect("checked");
    assert!(found.verified() && found.entries == 4, "{found:?}");
}

#[test]
fn proofs_out_of_kept_tiles_hold_at_every_edge() {
    let (_dir, store) = new_store(1);
    let mut seen = Vec::new();
    for many in [1, 253, 1, 1, 300, 211] {
        store.record_audit(&vec![draft(ActionKind::Chat); many]).expect("recorded");
        seen.push(store.checkpoint().expect("signed").verify().expect("authentic"));
    }
    let now = seen.last().expect("some").clone();
    assert_eq!(seen.iter().map(|tree| tree.size).collect::<Vec<_>>(), [2, 255, 256, 257, 557, 768]);
    for old in &seen {
        let proof = store.consistency_proof(old.size).expect("proved");
        assert!(verify_consistency(old.size, &old.root, now.size, &now.root, &proof), "{}", old.size);
    }
    for seq in [0, 1, 254, 255, 256, 511, 512, 767] {
        let proof = store.inclusion_proof(seq).expect("proved");
        let leaf = leaf_hash(&proof.entry.to_leaf());
        assert_eq!(proof.entry.seq, seq);
        assert!(verify_inclusion(&leaf, seq, now.size, &proof.hashes, &now.root), "{seq}");
    }
    assert!(matches!(store.inclusion_proof(768), Err(ReadError::NotFound(_))));
    let kept = |level, index| store.read(|reader| reader.stored_tile(TileAt { level, index })).expect("read");
    let widths = [kept(0, 0), kept(0, 2), kept(0, 3), kept(1, 0)].map(|tile| tile.map_or(0, |tile| tile.len()));
    assert_eq!(widths, [256, 256, 0, 3]);
    assert!(store.verify_audit(&mut |_, _| {}).expect("checked").verified());
    // A tile is derived: without it, the proof is the same; an altered one is found.
    let whole = store.inclusion_proof(300).expect("proved");
    let meta = Purpose::Shared(Shared::Meta);
    change(&store, |writer| writer.delete(Table::Meta, &tiles::key(TileAt { level: 0, index: 0 }), meta));
    assert_eq!(store.inclusion_proof(300).expect("proved").hashes.len(), whole.hashes.len());
    assert!(store.verify_audit(&mut |_, _| {}).expect("checked").verified());
    change(&store, |writer| {
        writer.put(
            Table::Meta,
            &tiles::key(TileAt { level: 1, index: 0 }),
            meta,
            &crate::format::encode(&[[9u8; 32]; 3].to_vec()),
        )
    });
    assert!(!store.verify_audit(&mut |_, _| {}).expect("checked").verified());
}

#[test]
fn a_cut_keeps_each_client_on_one_side() {
    let (_dir, store) = new_store(1);
    let candidates: Vec<_> = change(&store, |writer| {
        (0..60u8)
            .map(|n| {
                let client = writer.client_for(&format!("person {}", n % 20))?;
                Ok((stored(put(writer, &format!("person {}", n % 20), &[n])?), client))
            })
            .collect()
    });
    let owner = |id: &RecordId| candidates.iter().find(|(record, _)| record == id).expect("a candidate").1;
    let cut = change(&store, |writer| {
        writer.cut_dataset(CutRule { validation_percent: 25, seed: 3, at_ms: 9, candidates: candidates.clone() })
    });
    let side = |ids: &[RecordId]| -> BTreeSet<ClientId> { ids.iter().map(owner).collect() };
    assert!(side(cut.train()).is_disjoint(&side(cut.validation())));
    assert_eq!(cut.train().len() + cut.validation().len(), 60);
    assert!(!cut.validation().is_empty());
    assert_eq!(store.read(|reader| reader.dataset(cut.id())).expect("read"), Some(cut.clone()));
    assert_eq!(cut.summary().train, cut.train().len() as u64);

    let cut_of = |percent, candidates| {
        store.change(draft(ActionKind::DatasetCut), |writer, _| {
            writer.cut_dataset(CutRule { validation_percent: percent, seed: 3, at_ms: 9, candidates })
        })
    };
    assert!(matches!(cut_of(0, candidates.clone()), Err(WriteError::Invalid(_))));
    assert!(matches!(cut_of(51, candidates.clone()), Err(WriteError::Invalid(_))));
    assert!(matches!(cut_of(25, Vec::new()), Err(WriteError::Invalid(_))));
    // A record passed off as another client's would cross the line between the sides.
    let (record, _) = candidates[0];
    assert!(matches!(cut_of(25, vec![(record, candidates[1].1)]), Err(WriteError::NotFound(_))));
    assert_eq!(change(&store, |writer| writer.advance_consent_epoch()), 2);
    assert_eq!(cut_of(25, candidates).expect("cut").consent_epoch(), 2);
}

#[test]
fn adapters_move_only_as_they_may_and_roll_back_to_what_answered_before() {
    let (_dir, store) = furnished(1);
    let first = store.read(|reader| reader.active_adapter()).expect("read").expect("active");
    let new = || NewAdapter { job: JobId::from_bytes([2; 16]), dataset: first.dataset, blob: first.blob, body: vec![] };
    let step = |f: &dyn Fn(&mut crate::Writer<'_>) -> Result<Option<AdapterId>, WriteError>| {
        store.change(draft(ActionKind::AdapterPromote), |writer, _| f(writer))
    };
    let state_of = |id| store.read(|reader| reader.adapter(id)).expect("read").expect("there").state;

    let second = change(&store, |writer| writer.put_adapter(new()));
    assert!(matches!(step(&|writer| writer.activate_adapter(second)), Err(WriteError::Transition(_))));
    change(&store, |writer| writer.refuse_adapter(second, b"refused".to_vec()));
    assert_eq!(state_of(second), AdapterState::Candidate);
    change(&store, |writer| writer.approve_adapter(second, b"passed".to_vec()));
    let again = step(&|writer| writer.approve_adapter(second, vec![]).map(|()| None));
    assert!(matches!(again, Err(WriteError::Transition(_))));
    assert_eq!(step(&|writer| writer.activate_adapter(second)).expect("active"), Some(first.id));
    assert_eq!((state_of(first.id), state_of(second)), (AdapterState::Retired, AdapterState::Active));
    let retired = step(&|writer| writer.retire_adapter(second).map(|()| None));
    assert!(matches!(retired, Err(WriteError::Transition(_))));

    assert_eq!(step(&|writer| writer.rollback_adapter()).expect("back"), Some(first.id));
    assert_eq!((state_of(first.id), state_of(second)), (AdapterState::Active, AdapterState::Retired));
    assert_eq!(step(&|writer| writer.rollback_adapter()).expect("back"), None);
    assert!(store.read(|reader| reader.active_adapter()).expect("read").is_none());
    assert!(matches!(step(&|writer| writer.rollback_adapter()), Err(WriteError::Transition(_))));

    // A withdrawn generation is passed over.
    let ids: Vec<_> = (0..3).map(|_| change(&store, |writer| writer.put_adapter(new()))).collect();
    for id in &ids {
        change(&store, |writer| writer.approve_adapter(*id, vec![]));
        change(&store, |writer| writer.activate_adapter(*id));
    }
    change(&store, |writer| writer.retire_adapter(ids[1]));
    assert_eq!(step(&|writer| writer.rollback_adapter()).expect("back"), Some(ids[0]));
    let unknown = NewAdapter { dataset: DatasetId::from_bytes([9; 16]), ..new() };
    let refused = store.change(draft(ActionKind::TrainEnd), |writer, _| writer.put_adapter(unknown));
    assert!(matches!(refused, Err(WriteError::NotFound("dataset"))));
    assert!(store.verify_all(&mut |_, _| {}).expect("checked").is_clean());
}

#[test]
fn blobs_of_every_size_come_back_and_changed_files_do_not() {
    const CHUNK: usize = blobs::CHUNK_BYTES;
    let (dir, store) = new_store(1);
    for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
        let bytes: Vec<u8> = (0..size).map(|n| (n / 7) as u8).collect();
        let id = change(&store, |writer| writer.put_blob(&bytes));
        assert_eq!(*store.read(|reader| reader.blob(id)).expect("read"), bytes, "{size}");
        let info = store.read(|reader| reader.blob_info(id)).expect("read").expect("there");
        assert_eq!((info.bytes, info.digest), (size as u64, *blake3::hash(&bytes).as_bytes()));
    }
    let id = change(&store, |writer| writer.put_blob(&[5; 3 * CHUNK]));
    let path = blobs::path(&state(&dir), id);
    let good = fs::read(&path).expect("read");
    let mut swapped = good.clone();
    let (chunk, head) = (CHUNK + 16, 28);
    swapped[head..head + 2 * chunk].rotate_left(chunk);
    let mut flipped = good.clone();
    flipped[head + chunk + 5] ^= 1;
    let cut = good[..good.len() - chunk].to_vec();
    for bad in [swapped, flipped, cut, Vec::new()] {
        fs::write(&path, bad).expect("written");
        assert!(matches!(store.read(|reader| reader.blob(id)), Err(ReadError::Integrity(_))));
    }
    fs::write(&path, good).expect("written");
    assert!(change(&store, |writer| writer.drop_blob(id)));
    assert!(!path.exists());
    assert!(matches!(store.read(|reader| reader.blob(id)), Err(ReadError::NotFound(_))));
}

#[test]
fn a_blob_without_its_change_leaves_no_file() {
    let (dir, store) = new_store(1);
    let files = || fs::read_dir(state(&dir).join(blobs::DIR)).expect("listed").count();
    let failed = store.change(draft(ActionKind::TrainEnd), |writer, _| {
        writer.put_blob(b"weights")?;
        assert_eq!(files(), 1);
        Err::<(), _>(WriteError::Invalid("the daemon changed its mind"))
    });
    assert!(failed.is_err());
    assert_eq!(files(), 0);
    // A crash between file and commit leaves the file, and between commit and removal too: the next start sweeps.
    let kept = change(&store, |writer| writer.put_blob(b"kept"));
    drop(store);
    let folder = state(&dir).join(blobs::DIR);
    fs::write(folder.join("0123456789abcdef0123456789abcdef"), b"orphan").expect("written");
    fs::write(folder.join("0123456789abcdef0123456789abcdef.tmp"), b"half").expect("written");
    let store = reopen(&dir, 2);
    assert_eq!(files(), 1);
    assert_eq!(store.read(|reader| reader.blob(kept)).expect("read").as_slice(), b"kept");
}

#[test]
fn a_shared_key_is_replaced_before_its_limit() {
    let (dir, store) = furnished(1);
    let id = |store: &Store| {
        change(store, |writer| {
            let current = writer.current_of(Purpose::Shared(Shared::Docs))?;
            Ok(current.expect("in use").0.id)
        })
    };
    let before = id(&store);
    store.shared().seals.set(before, ROTATE_AFTER_SEALS);
    change(&store, |writer| writer.put_doc(DocKind::Job, [2; 16], b"under the new key"));
    assert_ne!(id(&store), before);
    let both = |store: &Store| store.read(|reader| reader.docs(DocKind::Job)).expect("read").len();
    assert_eq!(both(&store), 2);
    store.close(draft(ActionKind::Stop)).expect("closed");
    let store = reopen(&dir, 2);
    assert_eq!(both(&store), 2);
    let found = store.verify_all(&mut |_, _| {}).expect("checked");
    assert!(found.is_clean(), "{:?}", found.findings);
}

#[test]
fn no_plaintext_is_in_any_file() {
    const CANARY: &[u8] = b"canary-of-the-clinic-7731";
    let (dir, store) = new_store(1);
    let name = String::from_utf8_lossy(CANARY).into_owned();
    change(&store, |writer| {
        put(writer, &name, CANARY)?;
        writer.put_doc(DocKind::Setting, [1; 16], CANARY)?;
        writer.put_blob(&CANARY.repeat(9000))
    });
    let look = |moment: &str| {
        for path in all_files(&state(&dir)) {
            let bytes = fs::read(&path).expect("read");
            let found = bytes.windows(CANARY.len()).any(|window| window == CANARY);
            assert!(!found, "{} while {moment}", path.display());
        }
    };
    look("unsealed");
    store.seal(draft(ActionKind::Seal)).expect("sealed");
    look("sealed");
    assert!(state(&dir).join(backend::FILE).exists());
}

pub(super) fn all_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).expect("listed").map(|entry| entry.expect("listed").path());
    entries.flat_map(|path| if path.is_dir() { all_files(&path) } else { vec![path] }).collect()
}

#[test]
fn threads_read_change_and_seal_at_the_same_time() {
    let (_dir, store) = new_store(1);
    std::thread::scope(|scope| {
        for thread in 0..3u8 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..20u8 {
                    change(store, |writer| writer.put_doc(DocKind::Job, [thread * 20 + n; 16], &[n]));
                    let count = store.read(|reader| reader.docs(DocKind::Job)).expect("read").len();
                    assert!(count > n as usize);
                }
            });
        }
    });
    assert_eq!(store.verify_audit(&mut |_, _| {}).expect("checked").entries, 61);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| while store.read(|reader| reader.docs(DocKind::Job)).is_ok() {});
        store.seal(draft(ActionKind::Seal)).expect("sealed");
        reading.join().expect("reads end with an error, not a panic");
    });
}
