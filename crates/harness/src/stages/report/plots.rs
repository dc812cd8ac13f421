//! The plots of a report.

use std::path::PathBuf;

use anyhow::Result;
use eval::comparison::{Comparison, Measure};
use eval::mixing_weights::MixingWeights;
use eval::plots::{
    CurvePlot, FrontPlot, HeatPlot, Plot, RadarPlot, RewardPlot, ScatterPlot, UtilityPlot,
    WeightPlot, save,
};
use eval::rows::{GenerationRow, Identity};
use eval::statistics::Estimate;
use eval::utility::Utility;

use crate::store::manifest::Manifest;

/// Outlines of the radar plot; more can't be told apart (ours).
const OUTLINES: usize = 5;

/// Responses whose weights are shown, of different preferences (ours).
const TRACES: usize = 3;

/// Information in nats below which weights don't change: there is nothing to see then.
const NOTHING: f64 = 1e-6;

/// Draws plots into a folder and keeps them as SVG with their captions.
pub(super) struct Plots<'a> {
    pub manifest: &'a Manifest,
    pub comparison: &'a Comparison<'a>,
    pub generations: &'a [GenerationRow],
    pub weights: &'a [(String, MixingWeights)],
    /// In the order of colours.
    pub experts: &'a [String],
    pub folder: PathBuf,
    pub drawn: Vec<(String, String)>,
}

impl Plots<'_> {
    /// All of them, in the order of the report.
    pub fn draw(mut self) -> Result<Vec<(String, String)>> {
        self.estimates()?;
        self.matrices()?;
        self.radar()?;
        self.costs()?;
        self.fronts()?;
        self.weights()?;
        Ok(self.drawn)
    }

    fn add(&mut self, name: &str, caption: impl Into<String>, plot: &impl Plot) -> Result<()> {
        let svg = save(&self.folder, name, plot)?;
        self.drawn.push((caption.into(), svg));
        Ok(())
    }

    fn strategies(&self) -> Vec<String> {
        self.comparison.strategies().to_vec()
    }

    /// Utility of a response that is as good as the reference.
    fn neutral(&self) -> f64 {
        match self.manifest.experiment.utility {
            Utility::BradleyTerry => 0.5,
            Utility::Mean => 0.0,
        }
    }

    fn estimates(&mut self) -> Result<()> {
        let (strategies, comparison) = (self.strategies(), self.comparison);
        let utility = UtilityPlot {
            utilities: strategies.iter().map(|s| comparison.utility(s)).collect(),
            neutral: self.neutral(),
            strategies: strategies.clone(),
        };
        let caption =
            "Utility by strategy; the dashed line is a response as good as the reference.";
        self.add("utility", caption, &utility)?;
        let rewards = comparison.dimensions().iter().map(|d| {
            let estimates = strategies.iter().map(|s| comparison.reward(s, d));
            (d.clone(), estimates.collect::<Vec<_>>())
        });
        let stated = |(_, estimates): &(String, Vec<Option<Estimate>>)| {
            estimates.iter().any(Option::is_some)
        };
        let rewards = RewardPlot {
            rewards: rewards.filter(stated).collect(),
            strategies,
        };
        let caption = "Reward in each dimension that a preference states; zero is the base's mean.";
        self.add("rewards", caption, &rewards)
    }

    fn matrices(&mut self) -> Result<()> {
        let (strategies, comparison) = (self.strategies(), self.comparison);
        let n = strategies.len();
        let mut rates = vec![None; n * n];
        let index = |name: &str| strategies.iter().position(|s| s == name);
        let wins = comparison.win_rates().iter();
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
        )?;
        let preferences = comparison.preferences();
        let cells = strategies.iter().flat_map(|s| {
            let utility = move |p: &String| comparison.utility_for(s, p).map(|e| e.mean);
            preferences.iter().map(utility)
        });
        let by_preference = HeatPlot {
            title: "Utility by preference".into(),
            values: cells.collect(),
            rows: strategies.clone(),
            columns: preferences.to_vec(),
            middle: self.neutral(),
        };
        self.add("preferences", "Mean utility by preference.", &by_preference)
    }

    fn radar(&mut self) -> Result<()> {
        let (strategies, comparison) = (self.strategies(), self.comparison);
        let preferences = comparison.preferences();
        if preferences.len() < 3 {
            return Ok(());
        }
        let mut shown: Vec<usize> = comparison.order().into_iter().take(OUTLINES).collect();
        if !shown.contains(&0) {
            shown.push(0);
        }
        let outline = |&i: &usize| {
            let values = preferences.iter();
            let values = values.map(|p| Some(comparison.utility_for(&strategies[i], p)?.mean));
            Some((strategies[i].clone(), i, values.collect::<Option<_>>()?))
        };
        let radar = RadarPlot {
            title: "Utility by preference".into(),
            axes: preferences.to_vec(),
            outlines: shown.iter().filter_map(outline).collect(),
        };
        let caption = "Utility by preference: the strongest strategies, and the one that differences are against.";
        self.add("radar", caption, &radar)
    }

    fn costs(&mut self) -> Result<()> {
        let (manifest, comparison) = (self.manifest, self.comparison);
        let exact = |mean: f64| Estimate {
            mean,
            low: mean,
            high: mean,
            count: 1,
        };
        let divergence = |s: &String| comparison.kl(s);
        let time = |s: &String| Some(exact(manifest.seconds_per_token(s)? * 1000.0));
        self.scatter(
            "divergence",
            "What utility costs in divergence from the base.",
            "KL to the base, nats per token",
            &divergence,
        )?;
        self.scatter(
            "cost",
            "What utility costs in time.",
            "milliseconds per token",
            &time,
        )
    }

    fn scatter(
        &mut self,
        name: &str,
        caption: &str,
        axis: &str,
        x: &dyn Fn(&String) -> Option<Estimate>,
    ) -> Result<()> {
        let comparison = self.comparison;
        let point = |s: &String| Some((s.clone(), x(s)?, comparison.utility(s)?));
        let points: Vec<_> = self.strategies().iter().filter_map(point).collect();
        if points.len() < 2 {
            return Ok(());
        }
        let plot = ScatterPlot {
            title: format!("Utility against {name}"),
            x: axis.into(),
            y: "utility".into(),
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
            let strategies = self.strategies();
            let fronts = strategies.iter().filter_map(|s| {
                let points = comparison.front(s, sweep)?;
                let mut order: Vec<usize> = (0..points.len()).collect();
                let share = |i: &usize| sweep.preferences[*i].1[0];
                order.sort_by(|a, b| share(a).total_cmp(&share(b)));
                let path = order.iter().map(|&i| [points[i][0], points[i][1]]);
                Some((s.clone(), path.collect()))
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
