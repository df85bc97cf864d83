//! What a check found, as short texts without identifiers of people. How findings are shown is not known here.

/// Findings that are told one by one; more are only counted.
const MAX_TEXTS: usize = 64;

/// Findings so far.
#[derive(Default)]
pub(crate) struct Findings {
    texts: Vec<String>,
    more: u64,
}

impl Findings {
    /// One more.
    pub(crate) fn add(&mut self, text: String) {
        if self.texts.len() < MAX_TEXTS {
            self.texts.push(text);
        } else {
            self.more += 1;
        }
    }

    /// All that were found elsewhere.
    pub(crate) fn extend(&mut self, texts: Vec<String>) {
        texts.into_iter().for_each(|text| self.add(text));
    }

    /// The texts; the last one says how many are left out.
    pub(crate) fn into_texts(mut self) -> Vec<String> {
        if self.more > 0 {
            self.texts.push(format!("and {} more", self.more));
        }
        self.texts
    }
}
