//! Drives the real programs: builds them, fetches the reference model, starts and stops an appliance, speaks to it as
//! the clinic's record system would, searches and damages its files. It links none of the programs it drives.

pub mod appliance;
pub mod build;
pub mod ehr;
pub mod files;
pub mod model;
pub mod python;
