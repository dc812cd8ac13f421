//! Fronts of several rewards: who is not beaten everywhere, and how much they cover.

/// Indices of the points that no other point equals or exceeds in every coordinate (of equal points, the
/// first); more is better.
pub fn pareto(points: &[Vec<f64>]) -> Vec<usize> {
    let covers = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| a >= b);
    let beaten = |i: usize| {
        (0..points.len())
            .any(|j| j != i && covers(&points[j], &points[i]) && (points[j] != points[i] || j < i))
    };
    (0..points.len()).filter(|&i| !beaten(i)).collect()
}

/// Volume between a reference point and the points that exceed it, more being better: what at least one of
/// them dominates (Zitzler & Thiele 1998), by slicing along the last coordinate.
///
/// ```
/// use mope_eval::statistics::front::hypervolume;
/// assert_eq!(hypervolume(&[vec![2.0, 1.0], vec![1.0, 3.0]], &[0.0, 0.0]), 4.0);
/// ```
pub fn hypervolume(points: &[Vec<f64>], reference: &[f64]) -> f64 {
    let inside = |p: &&Vec<f64>| p.iter().zip(reference).all(|(p, r)| p > r);
    let points: Vec<&[f64]> = points.iter().filter(inside).map(Vec::as_slice).collect();
    volume(points, reference)
}

fn volume(mut points: Vec<&[f64]>, reference: &[f64]) -> f64 {
    let Some((floor, rest)) = reference.split_last() else {
        return 1.0;
    };
    let last = rest.len();
    if last == 0 {
        let best = points.iter().map(|p| p[0]).fold(*floor, f64::max);
        return best - floor;
    }
    points.sort_by(|a, b| b[last].total_cmp(&a[last]));
    let mut total = 0.0;
    for i in 0..points.len() {
        let below = points.get(i + 1).map_or(*floor, |p| p[last]);
        let height = points[i][last] - below;
        if height > 0.0 {
            total += height * volume(points[..=i].to_vec(), rest);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fronts_and_volumes_of_known_points() {
        let points = [
            vec![1.0, 1.0],
            vec![2.0, 0.0],
            vec![1.0, 1.0],
            vec![0.5, 0.5],
        ];
        assert_eq!(pareto(&points), [0, 1]);
        // A cube of side 2, and a slab that sticks out of it.
        let points = [vec![2.0, 2.0, 2.0], vec![3.0, 1.0, 1.0]];
        assert_eq!(hypervolume(&points, &[0.0; 3]), 9.0);
        assert_eq!(hypervolume(&points, &[5.0; 3]), 0.0);
        assert_eq!(hypervolume(&[], &[0.0; 2]), 0.0);
    }
}
