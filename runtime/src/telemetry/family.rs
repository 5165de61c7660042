//! One metric with labels, of which series can go again.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus::{
    Error, GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec, Registry,
    core::{Collector, MetricVec, MetricVecBuilder},
};

use super::catalogue::Metric;

/// All series of one metric. Looking one up locks it, so that whoever counts often keeps what it got.
#[derive(Clone, Debug)]
pub(super) struct Family<B: MetricVecBuilder> {
    metric: &'static Metric,
    vec: MetricVec<B>,
    /// The label values of the series that there are.
    known: Arc<Mutex<BTreeSet<Vec<String>>>>,
}

pub(super) type Counters = Family<<IntCounterVec as Parts>::Builder>;
pub(super) type Gauges = Family<<IntGaugeVec as Parts>::Builder>;
pub(super) type FloatGauges = Family<<GaugeVec as Parts>::Builder>;
pub(super) type Histograms = Family<<HistogramVec as Parts>::Builder>;

/// Names the builder of a vector, which prometheus gives no short name.
pub(super) trait Parts {
    type Builder: MetricVecBuilder;
}

impl<B: MetricVecBuilder> Parts for MetricVec<B> {
    type Builder = B;
}

impl<B: MetricVecBuilder + 'static> Family<B>
where
    MetricVec<B>: Collector + Clone,
{
    pub(super) fn register(
        registry: &Registry,
        metric: &'static Metric,
        vec: MetricVec<B>,
    ) -> Result<Self, Error> {
        registry.register(Box::new(vec.clone()))?;
        Ok(Self {
            metric,
            vec,
            known: Arc::default(),
        })
    }

    /// The series with these label values, in the order of the catalogue.
    pub(super) fn of<V: AsRef<str>>(&self, values: &[V]) -> B::M {
        let values: Vec<_> = values
            .iter()
            .map(|value| value.as_ref().to_owned())
            .collect();
        let mut known = self.known();
        let series = self.vec.with_label_values(&values);
        known.insert(values);
        series
    }

    /// The series of a metric without labels.
    pub(super) fn one(&self) -> B::M {
        self.of::<&str>(&[])
    }

    /// Removes the series that have these values of these labels. Whoever holds one goes on counting
    /// where nobody sees it; a new look-up begins at zero.
    pub(super) fn forget(&self, labels: &[(&str, &str)]) {
        let places: Vec<_> = labels
            .iter()
            .map(|(label, value)| (self.metric.place(label), *value))
            .collect();
        self.known().retain(|values| {
            let gone = places.iter().all(|(place, value)| values[*place] == *value);
            if gone {
                // Absent already is as good as removed.
                let _ = self.vec.remove_label_values(values);
            }
            !gone
        });
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<Vec<String>>> {
        // Each change leaves it whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
