//! Documents as the store keeps them: a byte for their shape, then postcard. A document of an earlier shape is read into
//! the present one; what a document means is not known here.

use crate::problem::defect;
use empathd_proto::problem::{ErrorCode, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Shape in which documents are written.
const SHAPE: u8 = 3;
/// Shape before a job could begin with an imported adapter.
const SECOND: u8 = 2;
/// Shape of the first release.
const FIRST: u8 = 1;

/// A document of the store.
pub(crate) trait Stored: Serialize + DeserializeOwned {
    /// Its fields as the first release wrote them.
    type First: DeserializeOwned + Into<Self>;
    /// Its fields in the second shape; `Self` where they are the present ones.
    type Second: DeserializeOwned + Into<Self>;
}

/// The bytes of a document.
pub(crate) fn encode<T: Stored>(value: &T) -> Result<Vec<u8>, Problem> {
    let mut body = vec![SHAPE];
    body.extend(postcard::to_stdvec(value).map_err(|_| defect("A description could not be encoded."))?);
    Ok(body)
}

/// The document in such bytes.
pub(crate) fn decode<T: Stored>(body: &[u8]) -> Result<T, Problem> {
    let value = match body.split_first() {
        Some((&SHAPE, rest)) => postcard::from_bytes(rest).ok(),
        Some((&SECOND, rest)) => postcard::from_bytes::<T::Second>(rest).ok().map(Into::into),
        Some((&FIRST, rest)) => postcard::from_bytes::<T::First>(rest).ok().map(Into::into),
        _ => None,
    };
    let next = "Install the release that wrote it.";
    value.ok_or_else(|| Problem::new(ErrorCode::StoreVersion, "A stored description has an unknown shape.", next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Now {
        name: String,
        count: u32,
    }

    #[derive(Serialize, Deserialize)]
    struct Then(String);

    impl From<Then> for Now {
        fn from(Then(name): Then) -> Self {
            Self { name, count: 0 }
        }
    }

    #[derive(Serialize, Deserialize)]
    struct Between(u32);

    impl From<Between> for Now {
        fn from(Between(count): Between) -> Self {
            Self { name: String::new(), count }
        }
    }

    impl Stored for Now {
        type First = Then;
        type Second = Between;
    }

    #[test]
    fn every_shape_is_read_and_others_are_refused() {
        let now = Now { name: "a".into(), count: 7 };
        assert_eq!(decode::<Now>(&encode(&now).expect("encoded")), Ok(now));
        let mut first = vec![FIRST];
        first.extend(postcard::to_stdvec(&Then("b".into())).expect("encoded"));
        assert_eq!(decode::<Now>(&first), Ok(Now { name: "b".into(), count: 0 }));
        let second = [vec![SECOND], postcard::to_stdvec(&Between(7)).expect("encoded")].concat();
        assert_eq!(decode::<Now>(&second), Ok(Now { name: String::new(), count: 7 }));
        for bad in [&[][..], &[4, 1], &[SHAPE, 9]] {
            assert_eq!(decode::<Now>(bad).expect_err("refused").code, ErrorCode::StoreVersion);
        }
    }
}
