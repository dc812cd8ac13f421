//! The plots of a report.

use std::path::PathBuf;

use anyhow::Result;
use eval::comparison::{Comparison, Measure};
use eval::frontier::Frontier;
use eval::mixing_weights::MixingWeights;
use eval::plots::{
    CurvePlot, DotPlot, FrontPlot, HeatPlot, Labelled, Plot, ScatterPlot, WeightPlot, save,
};
use eval::report::Figure;
use eval::rows::{GenerationRow, Identity};
use eval::statistics::Estimate;

use crate::store::manifest::Manifest;

/// Responses whose weights are shown, of different preferences (ours).
const TRACES: usize = 3;

/// Information in nats below which weights don't change: there is nothing to see then.
const NOTHING: f64 = 1e-6;

/// Names of the figures that stand open in the report, beside the fronts.
const MAIN: [&str; 5] = [
    "frontier",
    "utility_by_divergence",
    "utility",
    "preferences",
    "rewards",
];

/// Draws plots into a folder and keeps them as SVG with their captions.
pub(super) struct Plots<'a> {
    pub manifest: &'a Manifest,
    /// Where there are curves.
    pub frontier: Option<&'a Frontier>,
    pub comparison: &'a Comparison<'a>,
    pub generations: &'a [GenerationRow],
    pub weights: &'a [(String, MixingWeights)],
    /// In the order of colours.
    pub experts: &'a [String],
    /// Utility of a response that is as good as the reference.
    pub neutral: f64,
    pub folder: PathBuf,
    pub drawn: Vec<Figure>,
}

impl Plots<'_> {
    /// All of them, in the order of the report.
    pub fn draw(mut self) -> Result<Vec<Figure>> {
        self.frontier()?;
        self.costs()?;
        self.fronts()?;
        self.estimates()?;
        self.matrices()?;
        self.weights()?;
        Ok(self.drawn)
    }

    fn add(&mut self, name: &str, caption: impl Into<String>, plot: &impl Plot) -> Result<()> {
        let svg = save(&self.folder, name, plot)?;
        self.drawn.push(Figure {
            name: name.into(),
            caption: caption.into(),
            svg,
            main: MAIN.contains(&name) || name.starts_with("front_"),
        });
        Ok(())
    }

    /// Strategies in the order of the report's table, each with its place in the order of colours.
    fn rows(&self) -> Vec<Labelled> {
        let names = self.comparison.strategies();
        let order = self.comparison.by_utility().into_iter();
        order.map(|i| (names[i].clone(), i)).collect()
    }

    fn estimates(&mut self) -> Result<()> {
        let (rows, comparison) = (self.rows(), self.comparison);
        let of_all = |f: &dyn Fn(&str) -> Option<Estimate>| -> Vec<Option<Estimate>> {
            rows.iter().map(|(name, _)| f(name)).collect()
        };
        let preferences = comparison.preferences().iter();
        let mut panels = vec![("all preferences".into(), of_all(&|s| comparison.utility(s)))];
        let alone = DotPlot {
            rows: rows.clone(),
            panels: panels.clone(),
            axis: "utility (more is better)".into(),
            at: self.neutral,
        };
        let caption = "Utility by strategy with 95 % intervals; the dashed line is a response as good as the reference.";
        self.add("utility", caption, &alone)?;
        panels = preferences
            .map(|p| (p.clone(), of_all(&|s| comparison.utility_for(s, p))))
            .collect();
        if panels.len() > 1 {
            let caption = "Utility by preference with 95 % intervals.";
            self.add("preferences", caption, &DotPlot { panels, ..alone })?;
        }
        let rewards = comparison.dimensions().iter();
        let rewards = rewards.map(|d| (d.clone(), of_all(&|s| comparison.reward(s, d))));
        let stated = |(_, estimates): &(String, Vec<Option<Estimate>>)| {
            estimates.iter().any(Option::is_some)
        };
        let rewards = DotPlot {
            panels: rewards.filter(stated).collect(),
            rows: rows.clone(),
            axis: "reward (sd of the base)".into(),
            at: 0.0,
        };
        let caption = "Reward in each dimension that a preference states, signed so that more is better; the dashed line is \
                       the base's mean.";
        self.add("rewards", caption, &rewards)
    }

    fn matrices(&mut self) -> Result<()> {
        let strategies: Vec<String> = self.rows().into_iter().map(|(name, _)| name).collect();
        let n = strategies.len();
        let mut rates = vec![None; n * n];
        let index = |name: &str| strategies.iter().position(|s| s == name);
        let wins = self.comparison.win_rates().iter();
        for win in wins.filter(|w| w.measure == Measure::Utility) {
            if let (Some(row), Some(column)) = (index(&win.strategy), index(&win.opponent)) {
                rates[row * n + column] = Some(win.rate.mean);
            }
        }
        let matrix = HeatPlot {
            title: "Win rate of the row over the column".into(),
            rows: strategies.clone(),
            columns: strategies.clone(),
            values: rates,
            middle: 0.5,
        };
        self.add(
            "win_rates",
            "Share of pairs that the row's strategy wins.",
            &matrix,
        )
    }

    /// Curves of utility against divergence.
    fn frontier(&mut self) -> Result<()> {
        let Some(frontier) = self.frontier else {
            return Ok(());
        };
        let curves = frontier.curves().iter().enumerate();
        // From where all start, so that nothing below it takes room.
        let line = |i: usize| {
            let line = frontier.line(i);
            let base = line.first().map_or(0.0, |p| p.1);
            line.into_iter()
                .map(|(kl, utility)| (kl, utility - base))
                .collect()
        };
        let curves = curves.map(|(i, curve)| (curve.name.clone(), i, line(i)));
        let plot = CurvePlot {
            title: "Utility against divergence".into(),
            x: "KL to the base, nats per response".into(),
            y: "utility gained over the base".into(),
            curves: curves.collect(),
        };
        let caption = "Utility of strategies at several strengths against their divergence from the base, where all curves \
                       start. What lies above another curve is better at equal divergence.";
        self.add("frontier", caption, &plot)
    }

    fn costs(&mut self) -> Result<()> {
        let (manifest, comparison) = (self.manifest, self.comparison);
        let exact = |mean: f64| Estimate {
            mean,
            low: mean,
            high: mean,
            count: 1,
        };
        let divergence = |s: &str| comparison.kl_per_response(s);
        let time = |s: &str| Some(exact(manifest.seconds_per_token(s)? * 1000.0));
        self.scatter(
            "divergence",
            "What utility costs in divergence from the base, with 95 % intervals. Further up and further to the left is \
             better.",
            "KL to the base, nats per response (less is closer)",
            &divergence,
        )?;
        self.scatter(
            "cost",
            "What utility costs in time.",
            "milliseconds per token (less is faster)",
            &time,
        )
    }

    fn scatter(
        &mut self,
        name: &str,
        caption: &str,
        axis: &str,
        x: &dyn Fn(&str) -> Option<Estimate>,
    ) -> Result<()> {
        let comparison = self.comparison;
        let point = |label: Labelled| {
            let (x, y) = (x(&label.0)?, comparison.utility(&label.0)?);
            Some((label, x, y))
        };
        let points: Vec<_> = self.rows().into_iter().filter_map(point).collect();
        if points.len() < 2 {
            return Ok(());
        }
        let plot = ScatterPlot {
            title: format!("Utility against {name}"),
            x: axis.into(),
            y: "utility (more is better)".into(),
            points,
        };
        self.add(&format!("utility_by_{name}"), caption, &plot)
    }

    /// Sweeps over two directions.
    fn fronts(&mut self) -> Result<()> {
        let comparison = self.comparison;
        for (i, sweep) in comparison.sweeps().iter().enumerate() {
            let [first, second] = sweep.directions.as_slice() else {
                continue;
            };
            let sign = |s: f64| if s > 0.0 { '+' } else { '−' };
            let fronts = self.rows().into_iter().filter_map(|label| {
                let points = comparison.front(&label.0, sweep)?;
                let mut order: Vec<usize> = (0..points.len()).collect();
                let share = |i: &usize| sweep.preferences[*i].1[0];
                order.sort_by(|a, b| share(a).total_cmp(&share(b)));
                let path = order.iter().map(|&i| [points[i][0], points[i][1]]);
                Some((label, path.collect()))
            });
            let plot = FrontPlot {
                title: "Rewards over a sweep of preferences".into(),
                directions: [first, second].map(|(d, s)| format!("{}{d}", sign(*s))),
                fronts: fronts.collect(),
                reference: [self.manifest.experiment.reference_point; 2],
            };
            let name = sweep.name();
            let caption = format!("Mean rewards over the preferences of the sweep '{name}'.");
            self.add(&format!("front_{i}"), caption, &plot)?;
        }
        Ok(())
    }

    fn weights(&mut self) -> Result<()> {
        for (strategy, weights) in self.weights {
            if weights.preference_information > NOTHING {
                let means = weights.by_preference.values().flatten();
                let plot = HeatPlot {
                    title: format!("{strategy}: mean weights"),
                    rows: weights.by_preference.keys().cloned().collect(),
                    columns: weights.experts.clone(),
                    values: means.map(|w| Some(*w)).collect(),
                    middle: 0.0,
                };
                let caption =
                    format!("Mean weights of the experts under '{strategy}', by preference.");
                self.add(&format!("weights_by_preference_{strategy}"), caption, &plot)?;
            }
            if weights.token_information > NOTHING {
                self.changing(strategy, weights)?;
            }
        }
        Ok(())
    }

    /// The place of an expert in the order of colours, the same in every plot and in the browser of responses.
    fn place(&self, expert: &str) -> usize {
        let index = self.experts.iter().position(|e| e == expert);
        index.unwrap_or(self.experts.len())
    }

    /// Weights that change from token to token.
    fn changing(&mut self, strategy: &str, weights: &MixingWeights) -> Result<()> {
        let curve = |e: usize| {
            let points = weights.by_position.iter().enumerate();
            points.map(|(t, w)| (t as f64 + 1.0, w[e])).collect()
        };
        let names = weights.experts.iter().enumerate();
        let plot = CurvePlot {
            title: format!("{strategy}: mean weight by position"),
            x: "token".into(),
            y: "weight".into(),
            curves: names
                .map(|(e, name)| (name.clone(), self.place(name), curve(e)))
                .collect(),
        };
        let caption =
            format!("Mean weights of the experts under '{strategy}', by position in the response.");
        self.add(&format!("weights_by_position_{strategy}"), caption, &plot)?;
        // The first response to each of the first preferences.
        let mut rows: Vec<&GenerationRow> = Vec::new();
        for row in self.generations.iter() {
            let Identity {
                strategy: of_row,
                preference,
                ..
            } = &row.identity;
            let seen = rows.iter().any(|r| r.identity.preference == *preference);
            if of_row == strategy && !seen && rows.len() < TRACES {
                rows.push(row);
            }
        }
        for (i, row) in rows.into_iter().enumerate() {
            let Identity {
                preference, prompt, ..
            } = &row.identity;
            let shown = |e: &usize| weights.experts.contains(&row.experts[*e]);
            let shown: Vec<usize> = (0..row.experts.len()).filter(shown).collect();
            let tokens = row.weights.chunks(row.experts.len().max(1));
            let trace = WeightPlot {
                title: format!("{strategy}: {preference}, prompt {prompt}"),
                experts: shown.iter().map(|&e| row.experts[e].clone()).collect(),
                places: shown.iter().map(|&e| self.place(&row.experts[e])).collect(),
                weights: tokens.flat_map(|t| shown.iter().map(|&e| t[e])).collect(),
            };
            let caption = format!(
                "Weights of the experts over one response of '{strategy}' to '{preference}'."
            );
            let name = match i {
                0 => format!("weights_{strategy}"),
                i => format!("trace_{}_{strategy}", i + 1),
            };
            self.add(&name, caption, &trace)?;
        }
        Ok(())
    }
}
