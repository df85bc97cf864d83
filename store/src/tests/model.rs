//! The store against a `BTreeMap`: any sequence of changes, failed changes, kills and orderly stops leaves both with the
//! same contents.

use super::support::*;
use crate::{DataClass, DocKind, WriteError};
use empathd_proto::audit::ActionKind;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

#[derive(Debug, Clone)]
enum Step {
    PutDoc(u8, u8, usize),
    DropDoc(u8, u8),
    PutRecord(u8, u8),
    Fail(u8),
    Kill,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..2u8, 0..4u8, 0..6000usize).prop_map(|(kind, id, length)| Step::PutDoc(kind, id, length)),
        2 => (0..2u8, 0..4u8).prop_map(|(kind, id)| Step::DropDoc(kind, id)),
        4 => (0..3u8, 0..8u8).prop_map(|(client, content)| Step::PutRecord(client, content)),
        1 => (0..4u8).prop_map(Step::Fail),
        1 => Just(Step::Kill),
        1 => Just(Step::Stop),
    ]
}

fn kind(number: u8) -> DocKind {
    if number == 0 { DocKind::Job } else { DocKind::Cert }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_a_map(steps in prop::collection::vec(step(), 1..25)) {
        let (dir, mut store) = new_store(1);
        let mut docs: BTreeMap<(u8, u8), Vec<u8>> = BTreeMap::new();
        let mut records: BTreeMap<Vec<u8>, u8> = BTreeMap::new();
        let mut entries = 1;
        for (n, step) in steps.into_iter().enumerate() {
            entries += 1;
            match step {
                Step::PutDoc(k, id, length) => {
                    let body = vec![n as u8; length];
                    change(&store, |writer| writer.put_doc(kind(k), [id; 16], &body));
                    docs.insert((k, id), body);
                }
                Step::DropDoc(k, id) => {
                    let dropped = change(&store, |writer| writer.drop_doc(kind(k), [id; 16]));
                    prop_assert_eq!(dropped, docs.remove(&(k, id)).is_some());
                }
                Step::PutRecord(client, content) => {
                    let body = vec![content; 70];
                    change(&store, |writer| put(writer, &client.to_string(), &body));
                    records.entry(body).or_insert(client);
                }
                Step::Fail(id) => {
                    entries -= 1;
                    let failed = store.change(draft(ActionKind::Ingest), |writer, _| {
                        writer.put_doc(DocKind::Job, [id; 16], b"never")?;
                        put(writer, "nobody", b"never")?;
                        Err::<(), _>(WriteError::Invalid("stop"))
                    });
                    prop_assert!(failed.is_err());
                }
                Step::Kill => {
                    drop(store);
                    store = reopen(&dir, n as u64 + 2);
                }
                Step::Stop => {
                    entries += 1;
                    store.close(draft(ActionKind::Stop)).expect("closed");
                    store = reopen(&dir, n as u64 + 2);
                }
            }
        }
        for k in 0..2u8 {
            let found = store.read(|reader| reader.docs(kind(k))).expect("listed");
            let found: Vec<_> = found.iter().map(|(id, body)| (id[0], body.to_vec())).collect();
            let expected: Vec<_> =
                docs.iter().filter(|((of, _), _)| *of == k).map(|((_, id), body)| (*id, body.clone())).collect();
            prop_assert_eq!(found, expected);
        }
        let owners: BTreeMap<_, _> =
            (0..3u8).map(|n| (change(&store, |writer| writer.client_for(&n.to_string())), n)).collect();
        entries += 3;
        let mut found = BTreeMap::new();
        let walk = store.read(|reader| reader.records(DataClass::Training, &mut |_, client, body| {
            found.insert(body.to_vec(), owners[&client]);
            ControlFlow::Continue(())
        }));
        prop_assert!(walk.is_ok());
        prop_assert_eq!(found, records);
        let state = store.verify_all(&mut |_, _| {}).expect("checked");
        prop_assert!(state.is_clean(), "{:?}", state.findings);
        prop_assert_eq!(state.audit.map(|audit| audit.entries), Some(entries));
    }
}
