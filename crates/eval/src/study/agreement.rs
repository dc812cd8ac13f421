//! How far raters agree.

/// Krippendorff's α for nominal values with gaps (Krippendorff 2011): `units` hold the values that each unit
/// got, in any order. 1 is agreement, 0 what chance gives. `None` where no unit got two values, or all values
/// are the same.
pub fn krippendorff(units: &[Vec<usize>]) -> Option<f64> {
    let kinds = units.iter().flatten().max()? + 1;
    let mut coincidences = vec![0.0; kinds * kinds];
    for unit in units.iter().filter(|u| u.len() > 1) {
        let weight = 1.0 / (unit.len() - 1) as f64;
        for (i, a) in unit.iter().enumerate() {
            for (_, b) in unit.iter().enumerate().filter(|(j, _)| *j != i) {
                coincidences[a * kinds + b] += weight;
            }
        }
    }
    let margin = |a: usize| coincidences[a * kinds..(a + 1) * kinds].iter().sum::<f64>();
    let n: f64 = coincidences.iter().sum();
    let equal: f64 = (0..kinds).map(|a| coincidences[a * kinds + a]).sum();
    let chance: f64 = (0..kinds).map(|a| margin(a) * (margin(a) - 1.0)).sum();
    let expected = n * (n - 1.0) - chance;
    (expected > 0.0).then(|| 1.0 - (n - 1.0) * (n - equal) / expected)
}
