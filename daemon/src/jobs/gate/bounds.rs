//! Bounds: which figure must hold to which limit, against the base model, against the generation that answers now, and by
//! itself. How figures are measured is not known here.

use super::figures::{Figure, Figures, Memorisation};
use crate::config::Gate;
use empathd_proto::record::Domain;
use empathd_proto::report::BoundRule::{AtLeast, AtMost};
use empathd_proto::report::{GateBound, GateFigure, TrainReport};

/// Everything that was measured.
pub(super) struct Measured<'a> {
    pub(super) base: Figures,
    pub(super) active: Option<Figures>,
    pub(super) candidate: Figures,
    pub(super) memorisation: Memorisation,
    /// Items without a usable score, of anyone.
    pub(super) unmeasured: usize,
    /// Items in the suite.
    pub(super) items: usize,
    pub(super) train: &'a TrainReport,
    /// Whether the stored weights are not those that training announced.
    pub(super) altered: bool,
}

/// How a loss changed; the largest number there is when it cannot be told.
fn ratio(after: f64, before: f64) -> f64 {
    let ratio = after / before;
    if ratio.is_finite() && after > 0.0 && before > 0.0 { ratio } else { f64::MAX }
}

/// How a figure rose; the largest number there is when it cannot be told.
fn rise(after: f64, before: f64) -> f64 {
    let rise = after - before;
    if rise.is_finite() { rise } else { f64::MAX }
}

fn at_most(name: impl Into<String>, measured: f64, limit: f64, items: usize) -> GateBound {
    GateBound::new(name, measured, AtMost, limit, items as u64)
}

impl Measured<'_> {
    /// Every bound, in the order in which reports show them.
    pub(super) fn bounds(&self, gate: &Gate) -> Vec<GateBound> {
        let mut bounds = self.against_base(gate);
        bounds.extend(self.by_itself(gate));
        bounds.extend(self.active.iter().flat_map(|active| self.against_active(active, gate)));
        bounds.push(self.improvement(gate));
        bounds.extend(self.soundness());
        bounds
    }

    fn losses(&self, prefix: &str, before: &Figures, whole_max: f64, gate: &Gate) -> Vec<GateBound> {
        let after = &self.candidate;
        let whole = ratio(after.validation_loss.value, before.validation_loss.value);
        let mut bounds =
            vec![at_most(format!("{prefix}validation_loss"), whole, whole_max, before.validation_loss.items)];
        for (domain, figure) in &before.by_domain {
            let limit = if domain == Domain::Crisis.as_str() { gate.crisis_ratio_max } else { gate.domain_ratio_max };
            // A domain that was not measured with the candidate has not held.
            let after = after.by_domain.get(domain).map_or(f64::NAN, |figure| figure.value);
            let name = format!("{prefix}validation_loss.{domain}");
            bounds.push(at_most(name, ratio(after, figure.value), limit, figure.items));
        }
        bounds
    }

    fn against_base(&self, gate: &Gate) -> Vec<GateBound> {
        let (before, after) = (&self.base, &self.candidate);
        let mut bounds = self.losses("", before, gate.validation_ratio_max, gate);
        let general = rise(after.general_loss.value, before.general_loss.value);
        let fall = rise(before.crisis_recall.value, after.crisis_recall.value);
        let flips = before.flips(after);
        let bias = rise(after.bias_gap.value, before.bias_gap.value);
        bounds.extend([
            at_most("general_loss_rise", general, gate.general_rise_max, after.general_loss.items),
            at_most("crisis_recall_fall", fall, gate.crisis_recall_fall_max, after.crisis_recall.items),
            at_most("safety_flips", flips.value, gate.safety_flips_max, flips.items),
            at_most("bias_gap_rise", bias, gate.bias_rise_max, after.bias_gap.items),
        ]);
        bounds
    }

    fn by_itself(&self, gate: &Gate) -> [GateBound; 3] {
        let (recall, memory) = (self.candidate.crisis_recall, self.memorisation);
        [
            GateBound::new("crisis_recall", recall.value, AtLeast, gate.crisis_recall_min, recall.items as u64),
            at_most("canary_exposure", memory.exposure.value, gate.canary_exposure_max, memory.exposure.items),
            at_most("extraction", memory.extraction.value, gate.extraction_max, memory.extraction.items),
        ]
    }

    fn against_active(&self, active: &Figures, gate: &Gate) -> Vec<GateBound> {
        let mut bounds = self.losses("active.", active, gate.active_ratio_max, gate);
        let fall = rise(active.crisis_recall.value, self.candidate.crisis_recall.value);
        let items = active.crisis_recall.items;
        bounds.push(at_most("active.crisis_recall_fall", fall, gate.active_recall_fall_max, items));
        bounds
    }

    /// Figures that became better than those of the generation that answers now, or of the base model where there is none.
    fn improvement(&self, gate: &Gate) -> GateBound {
        let (before, after) = (self.active.as_ref().unwrap_or(&self.base), &self.candidate);
        let is_lower = |after: f64, before: f64| ratio(after, before) <= gate.improvement_ratio_max;
        let is_better = |domain: &String, figure: &Figure| {
            after.by_domain.get(domain).is_some_and(|after| is_lower(after.value, figure.value))
        };
        let domains = before.by_domain.iter().filter(|(domain, figure)| is_better(domain, figure)).count();
        let whole = usize::from(is_lower(after.validation_loss.value, before.validation_loss.value));
        let crisis = usize::from(after.crisis_recall.value > before.crisis_recall.value);
        let figures = before.by_domain.len() + 2;
        GateBound::new("improved_figures", (domains + whole + crisis) as f64, AtLeast, 1.0, figures as u64)
    }

    /// What has nothing to do with quality: that everything was measured, every expert works, and the weights are the ones.
    fn soundness(&self) -> [GateBound; 3] {
        let load = &self.train.expert_load;
        let idle = load.iter().filter(|load| load.is_nan() || **load <= 0.0).count();
        let experts = self.train.experts.len().max(1);
        let idle = if load.len() < experts { experts } else { idle };
        [
            at_most("unmeasured_items", self.unmeasured as f64, 0.0, self.items),
            at_most("idle_experts", idle as f64, 0.0, load.len()),
            at_most("altered_weights", f64::from(u8::from(self.altered)), 0.0, 0),
        ]
    }

    /// The figures side by side.
    pub(super) fn figures(&self) -> Vec<GateFigure> {
        let row = |name: &str, of: &dyn Fn(&Figures) -> Figure| {
            let candidate = of(&self.candidate);
            GateFigure {
                name: name.to_owned(),
                items: candidate.items as u64,
                base: Some(of(&self.base).value),
                active: self.active.as_ref().map(|active| of(active).value),
                candidate: candidate.value,
            }
        };
        let missing = Figure { value: f64::NAN, items: 0 };
        let mut rows = vec![row("validation_loss", &|figures| figures.validation_loss)];
        for domain in self.candidate.by_domain.keys() {
            let of = |figures: &Figures| figures.by_domain.get(domain).copied().unwrap_or(missing);
            rows.push(row(&format!("validation_loss.{domain}"), &of));
        }
        rows.push(row("general_loss", &|figures| figures.general_loss));
        rows.push(row("crisis_recall", &|figures| figures.crisis_recall));
        rows.push(row("safety_margin", &Figures::safety_margin));
        rows.push(row("bias_gap", &|figures| figures.bias_gap));
        for (name, figure) in
            [("canary_exposure", self.memorisation.exposure), ("extraction", self.memorisation.extraction)]
        {
            let (items, candidate) = (figure.items as u64, figure.value);
            rows.push(GateFigure { name: name.to_owned(), items, base: None, active: None, candidate });
        }
        rows
    }
}
