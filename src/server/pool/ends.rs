//! How the last slot of each function ended: why the next one starts cold. Bounded; what is forgotten is told as a first start.

use std::collections::HashMap;

use super::slot::Retire;
use crate::function::FunctionName;

/// Functions that are known at once: those whose last end is the oldest are forgotten first.
const MOST: usize = 4096;

#[derive(Debug, Default)]
pub struct Ends {
    last: HashMap<FunctionName, (Retire, u64)>,
    ends: u64,
}

impl Ends {
    pub fn ended(&mut self, function: &FunctionName, why: Retire) {
        self.ends += 1;
        if self.last.len() >= MOST && !self.last.contains_key(function) {
            let oldest = self.last.iter().min_by_key(|(_, (_, end))| *end).map(|(function, _)| function.clone());
            oldest.map(|oldest| self.last.remove(&oldest));
        }
        self.last.insert(function.clone(), (why, self.ends));
    }

    pub fn last(&self, function: &FunctionName) -> Option<Retire> {
        self.last.get(function).map(|(why, _)| *why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_end_counts_and_many_functions_cost_a_bounded_memory() {
        let name = |number: usize| FunctionName::parse(&format!("f{number}")).unwrap();
        let mut ends = Ends::default();
        ends.ended(&name(0), Retire::Idle);
        for number in 0..=MOST {
            ends.ended(&name(number), Retire::Memory);
            ends.ended(&name(1), Retire::Failed);
        }
        assert_eq!(ends.last.len(), MOST);
        assert_eq!([0, 1, MOST].map(|number| ends.last(&name(number))), [None, Some(Retire::Failed), Some(Retire::Memory)]);
    }
}
