//! A line through points of which the newer count more: least squares with weights that fall.

/// Weighted sums of a line `y = a + b × x`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Line {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    /// Takes in a point; what came before counts `forget` times as much from now on.
    pub(super) fn observe(&mut self, forget: f64, x: f64, y: f64) {
        for (sum, new) in [
            (&mut self.weight, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ] {
            *sum = *sum * forget + new;
        }
    }

    /// (a, b), both not negative: where the observations say otherwise, or say nothing of b, the line through the origin.
    pub(super) fn fit(&self) -> (f64, f64) {
        let spread = self.weight * self.xx - self.x * self.x;
        // Below a hundredth all x are alike, and the slope would be noise.
        if spread > 0.01 * self.weight * self.xx {
            let b = (self.weight * self.xy - self.x * self.y) / spread;
            let a = (self.y - b * self.x) / self.weight;
            if a >= 0.0 && b > 0.0 {
                return (a, b);
            }
        }
        (0.0, if self.x > 0.0 { self.y / self.x } else { 0.0 })
    }
}
