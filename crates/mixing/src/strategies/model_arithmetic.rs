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

use kernels::{Isa, math};
use serde::{Deserialize, Serialize};

use super::single::known;
use super::{Instance, InstanceContext, Method, Parts};
use crate::mixer::same_experts;
use crate::{
    BASE, Error, Mixed, Mixer, Plan, Preference, Requirements, Result, Step, mix_logs, owned,
};

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
                return Err(Error::Term(i + 1));
            }
            for name in term.of.names() {
                known(name, experts)?;
                names.push(name.clone());
            }
        }
        let total: f64 = self.terms.iter().map(|t| t.weight).sum();
        if (total - 1.0).abs() > 1e-6 {
            return Err(Error::WeightSum {
                total,
                remedy: "; where the formula divides by the sum, write the quotients",
            });
        }
        names.sort();
        names.dedup();
        let number = |name: &String| names.binary_search(name).unwrap_or(0);
        let terms = self.terms.iter().map(|term| Placed {
            weight: term.weight as f32,
            experts: term.of.names().iter().map(number).collect(),
            smallest: matches!(term.of, Operand::Intersection(_)),
        });
        let mixer = Formula {
            experts: names.len(),
            terms: terms.collect(),
        };
        Ok(Plan::new(names, Requirements::FULL, mixer))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        // A single term of weight 1 is its expert.
        true
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let term = |weight, of| Term { weight, of };
        let formula = |terms| Instance::new(Self { terms });
        vec![
            formula(vec![
                term(1.5, Operand::Expert(BASE.into())),
                term(0.8, Operand::Union(owned(context.directions))),
                term(-1.3, Operand::Intersection(owned(&[context.other, BASE]))),
            ])
            .reference("arithmetic"),
            formula(vec![term(1.0, Operand::Expert(context.other.into()))]).multiplies(),
        ]
    }
}

/// A term by the experts' numbers.
#[derive(Clone)]
struct Placed {
    weight: f32,
    experts: Vec<usize>,
    smallest: bool,
}

impl Placed {
    /// The term's log-probabilities; `None` where they are an expert's own.
    fn values(&self, rows: &[&[f32]]) -> Option<Vec<f32>> {
        let (first, others) = self.experts.split_first()?;
        if others.is_empty() {
            return None;
        }
        let mut values = rows[*first].to_vec();
        for &e in others {
            let pairs = values.iter_mut().zip(rows[e]);
            match self.smallest {
                true => pairs.for_each(|(v, other)| *v = if other < v { *other } else { *v }),
                false => pairs.for_each(|(v, other)| *v = if other > v { *other } else { *v }),
            }
        }
        Some(values)
    }
}

#[derive(Clone)]
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
            let values: Vec<Option<Vec<f32>>> =
                self.terms.iter().map(|t| t.values(&rows)).collect();
            let pairs = self.terms.iter().zip(&values);
            let terms: Vec<&[f32]> = pairs
                .map(|(term, values)| values.as_deref().unwrap_or(rows[term.experts[0]]))
                .collect();
            let powers: Vec<f32> = self.terms.iter().map(|t| t.weight).collect();
            mix_logs(&terms, &powers, out);
            weights.fill(0.0);
            let mut shares = Vec::new();
            for (term, values) in self.terms.iter().zip(&values) {
                let Some(values) = values else {
                    weights[term.experts[0]] += term.weight;
                    continue;
                };
                if shares.is_empty() {
                    shares.extend_from_slice(out);
                    math::exp_all(Isa::best(), &mut shares);
                }
                for (token, share) in shares.iter().enumerate() {
                    // The first expert whose value it is.
                    let mut experts = term.experts.iter();
                    let first = experts.find(|e| rows[**e][token] == values[token]);
                    weights[*first.unwrap_or(&term.experts[0])] += term.weight * share;
                }
            }
        });
        Ok(())
    }
}
