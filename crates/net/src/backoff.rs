//! Growing, capped, jittered pauses.

use std::time::Duration;

use rand::Rng;

/// Pauses that double from `min` to `max`, each shortened by up to half at random so that peers that lost the same
/// daemon do not come back in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `min`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max: max.max(min), next: min }
    }

    /// The next pause.
    pub fn next_pause(&mut self, rng: &mut impl Rng) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause.mul_f64(rng.random_range(0.5..=1.0))
    }

    /// Back to `min`: something worked.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_start_again_after_a_success() {
        let mut rng = rand::rngs::SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(80));
        let pauses: Vec<u128> = (0..6).map(|_| backoff.next_pause(&mut rng).as_millis()).collect();
        for (pause, bound) in pauses.iter().zip([10, 20, 40, 80, 80, 80]) {
            assert!((bound / 2..=bound).contains(pause), "{pause} is between half of {bound} and {bound}");
        }
        backoff.reset();
        assert!(backoff.next_pause(&mut rng) <= Duration::from_millis(10));
    }
}
