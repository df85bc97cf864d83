//! Invented people and the identifiers they let slip. Each identifier is used once and is remembered as a canary: a
//! text that must be found in the sources and nowhere in the appliance's state. Telephone numbers are of the block
//! 555-0100 to 555-0199, which is kept free for fiction; addresses end in domains reserved by RFC 2606.

use super::rng::Rng;
use std::collections::BTreeSet;

const FIRST: &[&str] = &[
    "Odalys",
    "Thaddeus",
    "Mirela",
    "Kwabena",
    "Ilse",
    "Rashid",
    "Yevgenia",
    "Tomasz",
    "Anneliese",
    "Babatunde",
    "Xiomara",
    "Leopold",
    "Siobhan",
    "Jaroslav",
    "Perpetua",
    "Dmitri",
    "Nkechi",
    "Evander",
    "Guadalupe",
    "Ulrich",
    "Zainab",
    "Cosimo",
    "Henrike",
    "Malachi",
];
const LAST: &[&str] = &[
    "Brankovic",
    "Okonjo",
    "Ferreira-Lund",
    "Hallgrimson",
    "Quintanilla",
    "Abernethy",
    "Szczepanik",
    "Vandermolen",
    "Iyengarth",
    "Castellanos",
    "Drummond-Reyes",
    "Oyelaran",
    "Petrossian",
    "Wainwright",
    "Zubiri",
    "Kirchhofer",
    "Nakagawara",
    "Tregenza",
    "Mbeki-Strand",
    "Lindqvist",
    "Arrowsmith",
    "Beaumarchais",
    "Cholmondeley",
    "Eszterhazy",
];
const STREETS: &[&str] = &[
    "Juniper Street",
    "Old Mill Road",
    "Cedar Avenue",
    "Harbor Lane",
    "Quarry Drive",
    "Willow Court",
    "Summit Avenue",
];
const AREA_CODES: &[u16] = &[212, 303, 312, 404, 415, 503, 512, 617, 702, 773, 808, 919];
const MONTHS: &[&str] = &[
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Makes identifiers and remembers each one.
pub(super) struct People {
    names_used: usize,
    names: Vec<String>,
    canaries: BTreeSet<String>,
}

impl People {
    /// Nobody yet.
    pub(super) fn new() -> Self {
        Self { names_used: 0, names: Vec::new(), canaries: BTreeSet::new() }
    }

    /// The names so far, for the clinic's roster.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Every identifier so far.
    pub(super) fn canaries(&self) -> impl Iterator<Item = &String> {
        self.canaries.iter()
    }

    /// A full name that was not used before. After 576 names it begins to number them.
    fn unused_name(&mut self) -> String {
        let n = self.names_used;
        self.names_used += 1;
        let (first, last) = (FIRST[n % FIRST.len()], LAST[(n + n / FIRST.len() * 7) % LAST.len()]);
        if n < FIRST.len() * LAST.len() { format!("{first} {last}") } else { format!("{first} {last} {n}") }
    }

    fn name(&mut self) -> String {
        let name = self.unused_name();
        self.names.push(name.clone());
        self.canaries.insert(name.clone());
        name
    }

    fn fresh(&mut self, mut make: impl FnMut() -> String) -> String {
        loop {
            let text = make();
            if self.canaries.insert(text.clone()) {
                return text;
            }
        }
    }

    fn phone(&mut self, rng: &mut Rng) -> String {
        self.fresh(|| {
            let (area, line) = (*rng.pick(AREA_CODES), 100 + rng.below(100));
            if rng.one_in(2) { format!("({area}) 555-0{line}") } else { format!("{area}-555-0{line}") }
        })
    }

    fn date(&mut self, rng: &mut Rng, years: std::ops::Range<usize>) -> String {
        self.fresh(|| {
            let (month, day) = (rng.below(12), 1 + rng.below(28));
            let year = years.start + rng.below(years.len());
            match rng.below(3) {
                0 => format!("{} {day}, {year}", MONTHS[month]),
                1 => format!("{:02}/{day:02}/{year}", month + 1),
                _ => format!("{year}-{:02}-{day:02}", month + 1),
            }
        })
    }

    fn email(&mut self, rng: &mut Rng) -> String {
        let name = self.unused_name().to_lowercase().replace(' ', ".");
        self.fresh(|| format!("{name}{}@example.{}", rng.below(1000), if rng.one_in(2) { "org" } else { "net" }))
    }

    fn address(&mut self, rng: &mut Rng) -> String {
        self.fresh(|| format!("{} {}", 100 + rng.below(9800), rng.pick(STREETS)))
    }

    fn ssn(&mut self, rng: &mut Rng) -> String {
        self.fresh(|| format!("{:03}-{:02}-{:04}", 100 + rng.below(560), 10 + rng.below(89), 1000 + rng.below(8999)))
    }

    fn mrn(&mut self, rng: &mut Rng) -> String {
        self.fresh(|| format!("{}", 10_000_000 + rng.below(89_999_999)))
    }

    /// A sentence in which a client gives away who they are.
    pub(super) fn slip(&mut self, rng: &mut Rng) -> String {
        match rng.below(9) {
            0 => format!("My name is {}, in case that matters to you.", self.name()),
            1 => format!("You can reach me at {} after six.", self.phone(rng)),
            2 => format!("Please write to {} and not to the house.", self.email(rng)),
            3 => format!("I was born on {}, if the form needs it.", self.date(rng, 1941..2006)),
            4 => format!("We live at {} now, on the second floor.", self.address(rng)),
            5 => format!("They wanted my social security number, {}, only to book this.", self.ssn(rng)),
            6 => format!("The letter has MRN {} on it, I think that is me.", self.mrn(rng)),
            7 => format!("My friend {} drove me here today.", self.name()),
            _ => format!("It all began on {}, I wrote it down.", self.date(rng, 2019..2026)),
        }
    }

    /// The first line of a note, as a clinic would write it.
    pub(super) fn note_head(&mut self, rng: &mut Rng) -> String {
        let (name, mrn, date) = (self.name(), self.mrn(rng), self.date(rng, 2024..2026));
        format!("Client {name}, MRN {mrn}, seen on {date}.")
    }
}
