//! Who may share what is in memory: keyed hashes of the caller's certificate and of the client it speaks for. The key is
//! random, lives from one unsealing to the next seal, and is overwritten then. What is shared is not known here.

use super::call::Client;
use crate::actor::Actor;
use empathd_proto::generate::{CacheScope, CallerKey};
use std::sync::{PoisonError, RwLock};
use zeroize::Zeroizing;

/// The key.
pub(crate) struct Salts(RwLock<Zeroizing<[u8; 32]>>);

impl Salts {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self(RwLock::new(Zeroizing::new(key)))
    }

    /// Forgets the key and takes another one: nothing that is in memory fits anybody any more.
    pub(crate) fn renew(&self, key: [u8; 32]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Zeroizing::new(key);
    }

    /// A keyed hash of these parts, each with its length.
    pub(crate) fn hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        let key = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut hasher = blake3::Hasher::new_keyed(&key);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }

    /// Who waits, for fair sharing, and who may use the same keys and values.
    pub(crate) fn of(&self, actor: &Actor, client: &Client) -> (CallerKey, CacheScope) {
        let certificate = match actor {
            Actor::Certificate { serial, .. } => serial.as_str(),
            _ => "",
        };
        // A word that is absent is not one that is empty.
        let word = |word: &Option<String>| word.as_ref().map_or_else(Vec::new, |word| [b"=", word.as_bytes()].concat());
        let (user, person, purpose) =
            (word(&client.user), word(&client.safety_identifier), word(&client.prompt_cache_key));
        let caller = self.hash(&[b"caller", certificate.as_bytes(), &user, &person]);
        let scope = self.hash(&[b"scope", certificate.as_bytes(), &user, &person, &purpose]);
        let mut short = [0; 8];
        short.copy_from_slice(&caller[..8]);
        let mut half = [0; 16];
        half.copy_from_slice(&scope[..16]);
        (CallerKey(u64::from_le_bytes(short)), CacheScope(half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::admin::ApiRole;
    use std::collections::HashSet;

    fn actor(serial: &str) -> Actor {
        Actor::Certificate { serial: serial.into(), number: 0, name: "same".into(), role: ApiRole::Ehr }
    }

    fn client(user: Option<&str>, person: Option<&str>, purpose: Option<&str>) -> Client {
        let word = |word: Option<&str>| word.map(str::to_owned);
        Client { user: word(user), safety_identifier: word(person), prompt_cache_key: word(purpose) }
    }

    #[test]
    fn every_caller_and_every_client_has_a_scope_of_its_own_until_the_key_changes() {
        let salts = Salts::new([1; 32]);
        let clients = [
            client(None, None, None),
            client(Some(""), None, None),
            client(Some("a"), None, None),
            client(None, Some("a"), None),
            client(None, None, Some("a")),
            client(Some("ab"), None, None),
            client(Some("a"), Some("b"), None),
        ];
        let scopes = || -> Vec<CacheScope> {
            let of = |serial| clients.iter().map(move |client| (serial, client));
            of("01").chain(of("02")).map(|(serial, client)| salts.of(&actor(serial), client).1).collect()
        };
        let before = scopes();
        assert_eq!(before, scopes(), "the same again");
        salts.renew([2; 32]);
        let all: HashSet<CacheScope> = before.into_iter().chain(scopes()).collect();
        assert_eq!(all.len(), 4 * clients.len());
    }

    #[test]
    fn a_purpose_divides_what_is_shared_and_not_who_waits() {
        let salts = Salts::new([1; 32]);
        let (one, two) = (client(Some("a"), None, Some("x")), client(Some("a"), None, Some("y")));
        let (one, two) = (salts.of(&actor("01"), &one), salts.of(&actor("01"), &two));
        assert_eq!(one.0, two.0);
        assert_ne!(one.1, two.1);
    }
}
