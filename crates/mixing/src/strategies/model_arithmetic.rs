//! Signed sums of experts, with unions and intersections among them:
//!
//! `log p(y) = Σ_k w_k t_k(y) + c`, where a term is an expert's `log p_i(y)`, a union `max_i log p_i(y)` or
//! an intersection `min_i log p_i(y)`
//!
//! Controlled text generation via language model arithmetic (arXiv 2311.14479): each term minimises a
//! Kullback-Leibler divergence that counts only where its indicator says so.
//!
//! 1. The paper divides by the sum of the weights; here they must sum to 1, so nothing is rescaled
//!    unseen. `base + 1.5 formal − 1.5 rude` is written as it stands.
//! 2. Weights belong to the strategy, not to the preference: a formula is made for one purpose.
//! 3. Recorded is each expert's weight; a union's or intersection's is shared by how often, under the
//!    result, each of its experts is the one that counts.

use serde::{Deserialize, Serialize};

use super::Method;
use crate::mixer::same_experts;
use crate::{Mixed, Mixer, Needs, Plan, Preference, Result, Step, mix_logs, refuse};

/// A formula over experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelArithmetic {
    /// What is added up.
    pub terms: Vec<Term>,
}

/// One summand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Its weight, of any sign; all sum to 1.
    pub weight: f64,
    /// What is weighted.
    pub of: Operand,
}

/// Something with a log-probability for every token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Operand {
    /// An expert.
    Expert(String),
    /// What any of them likes.
    Union(Vec<String>),
    /// What all of them like.
    Intersection(Vec<String>),
}

impl Operand {
    fn names(&self) -> &[String] {
        match self {
            Self::Expert(name) => std::slice::from_ref(name),
            Self::Union(names) | Self::Intersection(names) => names,
        }
    }
}

impl Method for ModelArithmetic {
    fn plan(&self, _: &Preference, experts: &[&str]) -> Result<Plan> {
        let mut names: Vec<String> = Vec::new();
        for (i, term) in self.terms.iter().enumerate() {
            if !term.weight.is_finite() || term.of.names().is_empty() {
                return refuse(format!(
                    "term {}: a finite weight and an expert are needed",
                    i + 1
                ));
            }
            for name in term.of.names() {
                if !experts.contains(&name.as_str()) {
                    let known = experts.join(", ");
                    return refuse(format!(
                        "there is no expert '{name}'; the experts are: {known}"
                    ));
                }
                names.push(name.clone());
            }
        }
        let total: f64 = self.terms.iter().map(|t| t.weight).sum();
        if (total - 1.0).abs() > 1e-6 {
            return refuse(format!(
                "the weights sum to {total}, not to 1; where the formula divides by the sum, write the \
                 quotients"
            ));
        }
        names.sort();
        names.dedup();
        let place = |name: &String| names.binary_search(name).unwrap_or(0);
        let terms = self.terms.iter().map(|term| Placed {
            weight: term.weight as f32,
            experts: term.of.names().iter().map(place).collect(),
            smallest: matches!(term.of, Operand::Intersection(_)),
        });
        let mixer = Formula {
            experts: names.len(),
            terms: terms.collect(),
        };
        Ok(Plan::new(names, mixer))
    }

    fn needs(&self) -> Needs {
        Needs::FULL
    }

    fn one_hot(&self) -> bool {
        // A single term of weight 1 is its expert.
        true
    }
}

/// A term by the experts' numbers.
struct Placed {
    weight: f32,
    experts: Vec<usize>,
    smallest: bool,
}

impl Placed {
    /// The expert that counts for a token, the first of equals.
    fn counts(&self, rows: &[&[f32]], token: usize) -> usize {
        let mut best = self.experts[0];
        for &e in &self.experts[1..] {
            let (own, other) = (rows[e][token], rows[best][token]);
            if if self.smallest {
                own < other
            } else {
                own > other
            } {
                best = e;
            }
        }
        best
    }
}

struct Formula {
    experts: usize,
    terms: Vec<Placed>,
}

impl Mixer for Formula {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        same_experts(step, self.experts)?;
        mixed.each(step, |sequence, out, weights| {
            let rows: Vec<&[f32]> = (0..self.experts)
                .map(|e| step.next.row(e, sequence))
                .collect();
            let plain: Vec<bool> = self.terms.iter().map(|t| t.experts.len() == 1).collect();
            let compound = self.terms.iter().zip(&plain).filter(|(_, plain)| !**plain);
            let values: Vec<Vec<f32>> = compound
                .map(|(t, _)| {
                    let value = |token| rows[t.counts(&rows, token)][token];
                    (0..out.len()).map(value).collect()
                })
                .collect();
            let mut compound = values.iter();
            let terms: Vec<&[f32]> = self
                .terms
                .iter()
                .filter_map(|t| match t.experts[..] {
                    [only] => Some(rows[only]),
                    _ => compound.next().map(Vec::as_slice),
                })
                .collect();
            let powers: Vec<f32> = self.terms.iter().map(|t| t.weight).collect();
            mix_logs(&terms, &powers, out);
            weights.fill(0.0);
            for term in &self.terms {
                match term.experts[..] {
                    [only] => weights[only] += term.weight,
                    _ => {
                        for (token, log_prob) in out.iter().enumerate() {
                            weights[term.counts(&rows, token)] += term.weight * log_prob.exp();
                        }
                    }
                }
            }
        });
        Ok(())
    }
}
