//! Metrics and statistics against other libraries' (`scripts/fixtures/evaluation.py`).
#![allow(clippy::unwrap_used, reason = "tests")]

use mope_eval::metrics::bleu;
use mope_eval::statistics::front::hypervolume;
use mope_eval::statistics::permutation::{holm, p_value};
use mope_eval::statistics::power::{DIFFERENCE, prompts_needed};
use mope_eval::study::krippendorff;
use serde_json::Value;

fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/statistics.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    let all = value.as_array().unwrap().iter();
    all.map(|v| v.as_f64().unwrap()).collect()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{a} {b}");
}

#[test]
fn bleu_equals_sacrebleu() {
    for case in fixture()["bleu"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let references = case["references"].as_array().unwrap().iter();
        let references: Vec<Vec<String>> = references
            .map(|r| bleu::tokens(r.as_str().unwrap()))
            .collect();
        let references: Vec<&[String]> = references.iter().map(Vec::as_slice).collect();
        let got = bleu::sentence(&bleu::tokens(text), &references);
        close(got, case["bleu"].as_f64().unwrap());
    }
}

#[test]
fn volumes_equal_pymoo() {
    for case in fixture()["volumes"].as_array().unwrap() {
        let points = case["points"].as_array().unwrap();
        let points: Vec<Vec<f64>> = points.iter().map(numbers).collect();
        let got = hypervolume(&points, &numbers(&case["reference"]));
        close(got, case["volume"].as_f64().unwrap());
    }
}

#[test]
fn corrections_and_power_equal_statsmodels_and_scipy() {
    let fixture = fixture();
    let got = holm(&numbers(&fixture["holm"]["p"]));
    for (got, expected) in got.iter().zip(numbers(&fixture["holm"]["holm"])) {
        close(*got, expected);
    }
    let got = prompts_needed(&numbers(&fixture["power"]["means"]), DIFFERENCE).unwrap();
    close(got, fixture["power"]["needed"].as_f64().unwrap());
}

#[test]
fn sign_tests_equal_scipy_and_agreement_equals_krippendorffs_package() {
    let people = &fixture()["people"];
    let units = people["units"].as_array().unwrap().iter();
    let units: Vec<Vec<usize>> = units
        .map(|u| numbers(u).iter().map(|v| *v as usize).collect())
        .collect();
    close(
        krippendorff(&units).unwrap(),
        people["alpha"].as_f64().unwrap(),
    );
    for sign in people["signs"].as_array().unwrap() {
        let sign = numbers(sign);
        let (won, lost) = (sign[0] as usize, sign[1] as usize);
        let p = p_value(&[vec![1.0; won], vec![-1.0; lost]].concat());
        // Signs are drawn where there are many.
        let exact = won + lost <= 20;
        let near = if exact { 1e-9 } else { 0.02 };
        assert!((p - sign[2]).abs() <= near, "{won} {lost}: {p}");
    }
}
