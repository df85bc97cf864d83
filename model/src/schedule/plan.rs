//! What one step computes: first a row for every answer that makes tokens, with its proposals, then pieces of prompts as
//! far as the budget goes, the most urgent first. Nobody who makes tokens waits for a prompt, and a prompt moves on in
//! every step. A crisis is read as if nobody else were there. Refuses to know answers and slots.

use crate::infer::compute::LogitRows;
use empathd_proto::generate::ServiceClass;

/// Prompt tokens read in a step beside answers that make tokens; bounds how much longer such a step takes.
pub const PREFILL_ROWS_BESIDE: usize = 128;
/// Prompt tokens read in a step when nobody makes tokens; a newcomer waits for one such step at most.
pub const PREFILL_ROWS_ALONE: usize = 512;
/// Most rows of answers that make tokens, proposals included, while there are proposals: up to here the weights are
/// read only once and a row more costs little.
pub const DRAFT_ROWS: usize = 16;

/// What an answer needs next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// How urgent it is: its class, then when it began.
    pub(super) urgency: (ServiceClass, u64),
    /// Tokens that are not in its slot yet, proposals excepted; at least one.
    pub(super) pending: usize,
    /// Proposed tokens behind them.
    pub(super) drafted: usize,
    /// It waits for another that reads the same prompt.
    pub(super) waits: bool,
}

/// What is computed for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Which of the needs.
    pub(super) index: usize,
    pub(super) rows: usize,
    pub(super) logits: LogitRows,
}

/// Bounds of a pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) rows: usize,
    pub(super) logit_rows: usize,
}

/// Parts for as many needs as the bounds allow.
pub(super) fn plan(needs: &[Need], bounds: Bounds) -> Vec<Part> {
    let mut order: Vec<usize> = (0..needs.len()).filter(|index| !needs[*index].waits).collect();
    order.sort_by_key(|index| needs[*index].urgency);
    let mut parts = Vec::with_capacity(order.len());
    let (mut rows, mut logit_rows) = (bounds.rows, bounds.logit_rows);
    let makes_tokens = |index: &&usize| needs[**index].pending == 1;
    for index in order.iter().filter(makes_tokens) {
        let wanted = 1 + needs[*index].drafted;
        if wanted <= rows.min(logit_rows) {
            let logits = if wanted > 1 { LogitRows::All } else { LogitRows::Last };
            parts.push(Part { index: *index, rows: wanted, logits });
            (rows, logit_rows) = (rows - wanted, logit_rows - wanted);
        }
    }
    let alone = parts.is_empty();
    let mut read = 0;
    for index in order.iter().filter(|index| !makes_tokens(index)) {
        let Need { urgency: (class, _), pending, .. } = needs[*index];
        let hurries = alone || class == ServiceClass::Crisis;
        let budget = if hurries { PREFILL_ROWS_ALONE } else { PREFILL_ROWS_BESIDE };
        let mut rows = pending.min(budget.min(rows).saturating_sub(read));
        // The row of the last token needs room for its logits; without it the piece ends before.
        if rows == pending && logit_rows == 0 {
            rows -= 1;
        }
        if rows > 0 {
            let logits = if rows == pending { LogitRows::Last } else { LogitRows::None };
            parts.push(Part { index: *index, rows, logits });
            (read, logit_rows) = (read + rows, logit_rows - usize::from(rows == pending));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { rows: 512, logit_rows: 128 };

    fn need(class: ServiceClass, begun: u64, pending: usize) -> Need {
        Need { urgency: (class, begun), pending, drafted: 0, waits: false }
    }

    fn part(index: usize, rows: usize, logits: LogitRows) -> Part {
        Part { index, rows, logits }
    }

    #[test]
    fn tokens_come_before_prompts_and_prompts_in_the_order_of_their_urgency() {
        let (crisis, interactive) = (ServiceClass::Crisis, ServiceClass::Interactive);
        let drafting = Need { drafted: 3, ..need(ServiceClass::Batch, 3, 1) };
        let needs = [need(interactive, 1, 300), need(crisis, 4, 100), drafting, need(interactive, 2, 1)];
        let expected = [
            part(3, 1, LogitRows::Last),
            part(2, 4, LogitRows::All),
            part(1, 100, LogitRows::Last),
            part(0, 28, LogitRows::None),
        ];
        assert_eq!(plan(&needs, BOUNDS), expected);
    }

    #[test]
    fn a_lone_prompt_is_read_in_large_pieces_and_one_who_waits_is_left_out() {
        let twin = Need { waits: true, ..need(ServiceClass::Interactive, 2, 700) };
        let needs = [need(ServiceClass::Interactive, 1, 700), twin];
        assert_eq!(plan(&needs, BOUNDS), [part(0, 512, LogitRows::None)]);
    }

    #[test]
    fn a_crisis_is_read_at_once_and_takes_the_turn_of_other_prompts() {
        let (crisis, interactive) = (ServiceClass::Crisis, ServiceClass::Interactive);
        let needs = [need(interactive, 1, 1), need(interactive, 2, 200), need(crisis, 3, 300)];
        assert_eq!(plan(&needs, BOUNDS), [part(0, 1, LogitRows::Last), part(2, 300, LogitRows::Last)]);
        let needs = [need(interactive, 1, 1), need(interactive, 2, 200), need(crisis, 3, 100)];
        assert_eq!(plan(&needs, BOUNDS)[2], part(1, 28, LogitRows::None));
    }

    #[test]
    fn bounds_of_a_pass_hold() {
        let needs: Vec<Need> = (0..8).map(|begun| Need { drafted: 3, ..need(ServiceClass::Batch, begun, 1) }).collect();
        let few = plan(&needs, Bounds { rows: 10, logit_rows: 10 });
        assert_eq!(few.iter().map(|part| part.rows).sum::<usize>(), 8);
        let prompts = [need(ServiceClass::Batch, 1, 5), need(ServiceClass::Batch, 2, 5)];
        let last = plan(&prompts, Bounds { rows: 512, logit_rows: 1 });
        assert_eq!(last, [part(0, 5, LogitRows::Last), part(1, 4, LogitRows::None)]);
    }
}
