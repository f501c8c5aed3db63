//! What usage costs: requests and GB-seconds, a free tier, and two prices.
//!
//! A word, pure: usage and a tariff in, money out. Sums are integers (requests; MB × ms; picodollars), so that a bill does not
//! depend on the order of its rows; money is made once, at the end.
//!
//! ```text
//! GB-seconds of one invocation = memory as configured / 1024 × billed seconds
//! due                          = (requests - free requests) × price + (GB-seconds - free GB-seconds) × price
//! ```
//!
//! What an idle environment costs is nothing: there is no row for it.

use std::iter::Sum;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// 10⁻¹² dollars in one.
const PICO: f64 = 1e12;
/// MB × ms in one GB-second.
const MB_MS: u128 = 1024 * 1000;
const MILLION: u128 = 1_000_000;

/// An amount of US dollars, in picodollars: the price of a GB-second is an integer in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Usd(u128);

impl Usd {
    pub const fn from_pico(pico: u128) -> Self {
        Self(pico)
    }
}

impl TryFrom<f64> for Usd {
    type Error = &'static str;

    /// The nearest picodollar: a price as people write it, which a float does not hold exactly, is held exactly here.
    fn try_from(dollars: f64) -> Result<Self, Self::Error> {
        if (0.0..=1e6).contains(&dollars) {
            Ok(Self((dollars * PICO).round() as u128))
        } else {
            Err("must be 0 to 1000000 dollars")
        }
    }
}

impl From<Usd> for f64 {
    fn from(usd: Usd) -> f64 {
        usd.0 as f64 / PICO
    }
}

/// What was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Each started invocation is one, however it ended.
    pub requests: u64,
    /// Billed milliseconds, each times the function's configured MB.
    pub mb_ms: u128,
}

impl Usage {
    pub fn gb_s(&self) -> f64 {
        self.mb_ms as f64 / MB_MS as f64
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.mb_ms = self.mb_ms.saturating_add(other.mb_ms);
    }
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, usage| {
            sum += usage;
            sum
        })
    }
}

/// The prices, and what each calendar month (UTC) has for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tariff {
    pub million_requests_usd: Usd,
    pub gb_s_usd: Usd,
    pub free_requests: u64,
    pub free_gb_s: u64,
}

impl Tariff {
    /// At these prices, with nothing for free.
    pub fn cost(&self, usage: &Usage) -> Usd {
        let requests = u128::from(usage.requests) * self.million_requests_usd.0;
        let time = usage.mb_ms.saturating_mul(self.gb_s_usd.0);
        Usd((requests + MILLION / 2) / MILLION + (time + MB_MS / 2) / MB_MS)
    }

    /// What a whole month costs: the free tier is the account's, not each function's.
    pub fn due(&self, month: &Usage) -> Usd {
        self.cost(&Usage {
            requests: month.requests.saturating_sub(self.free_requests),
            mb_ms: month.mb_ms.saturating_sub(u128::from(self.free_gb_s) * MB_MS),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lambdas() -> Tariff {
        Tariff {
            million_requests_usd: Usd::try_from(0.20).unwrap(),
            gb_s_usd: Usd::try_from(0.000_016_67).unwrap(),
            free_requests: 1_000_000,
            free_gb_s: 400_000,
        }
    }

    fn of(requests: u64, mb: u64, ms: u64) -> Usage {
        Usage { requests, mb_ms: u128::from(requests) * u128::from(mb) * u128::from(ms) }
    }

    /// Lambda's own table of 2018, which has nine digits, and rounds.
    #[test]
    fn a_hundred_milliseconds_cost_what_the_table_of_2018_says() {
        for (mb, dollars) in
            [(128, 0.000_000_208), (256, 0.000_000_417), (512, 0.000_000_834), (1024, 0.000_001_667), (3008, 0.000_004_897)]
        {
            let time_only = Usage { requests: 0, ..of(1, mb, 100) };
            let cost = f64::from(lambdas().cost(&time_only));
            assert!((cost - dollars).abs() < 0.000_000_000_6, "{mb} MB: {cost}");
        }
    }

    /// The two worked examples of Lambda's price page.
    #[test]
    fn a_month_costs_what_is_beyond_the_free_tier() {
        // 3 million times 1 s of 512 MB: 2 million requests and 1,100,000 GB-s are paid.
        assert_eq!(f64::from(lambdas().due(&of(3_000_000, 512, 1000))), 18.737);
        // 30 million times 200 ms of 128 MB: 29 million requests; 350,000 GB-s more than the 400,000.
        assert_eq!(f64::from(lambdas().due(&of(30_000_000, 128, 200))), 11.6345);
        assert_eq!(lambdas().due(&of(1_000_000, 128, 100)), Usd::default());
    }

    #[test]
    fn prices_are_held_as_they_are_written() {
        assert_eq!(Usd::try_from(0.000_016_67).unwrap(), Usd::from_pico(16_670_000));
        assert_eq!(Usd::try_from(0.20).unwrap(), Usd::from_pico(200_000_000_000));
        assert_eq!(f64::from(Usd::from_pico(16_670_000)), 0.000_016_67);
        for wrong in [-0.1, f64::NAN, f64::INFINITY, 1e7] {
            Usd::try_from(wrong).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn a_bill_is_at_most_the_list_price_and_never_falls_with_usage(a in any::<u32>(), b in any::<u32>(), c in any::<u32>()) {
            let usage = |n: u32| Usage { requests: n.into(), mb_ms: u128::from(n) * u128::from(c) };
            let both: Usage = [usage(a), usage(b)].into_iter().sum();
            let tariff = lambdas();
            prop_assert!(tariff.due(&both) <= tariff.cost(&both));
            prop_assert!(tariff.due(&usage(a)) <= tariff.due(&both));
            // Parts rounded apart may differ from the whole by their rounding only.
            let parts = tariff.cost(&usage(a)).0 + tariff.cost(&usage(b)).0;
            prop_assert!(parts.abs_diff(tariff.cost(&both).0) <= 3);
        }
    }
}
