//! One metric with labels, of which series can go again.
//!
//! The series are kept by their label values. (Vectors of `prometheus` keep them by a hash of the
//! values one after the other, so that `a`, `bc` and `ab`, `c` are one; some values are chosen by
//! peers.)

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus::{
    Error, Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry,
    core::{Collector, Desc},
    proto::{MetricFamily, MetricType},
};

use super::catalogue::Metric;

/// All series of one metric. Looking one up locks it, so that whoever counts often keeps what it got.
#[derive(Clone, Debug)]
pub(super) struct Family<S> {
    metric: &'static Metric,
    desc: Arc<Desc>,
    buckets: &'static [f64],
    /// By label values.
    series: Arc<Mutex<BTreeMap<Vec<String>, S>>>,
}

pub(super) type Counters = Family<IntCounter>;
pub(super) type Gauges = Family<IntGauge>;
pub(super) type FloatGauges = Family<Gauge>;
pub(super) type Histograms = Family<Histogram>;

/// What counts in one series.
pub(super) trait Counting: prometheus::core::Metric + 'static {
    /// What collectors take it for.
    const TYPE: MetricType;

    /// One at zero.
    fn new(options: Opts, buckets: &[f64]) -> Result<Self, Error>;
}

impl Counting for IntCounter {
    const TYPE: MetricType = MetricType::COUNTER;

    fn new(options: Opts, _: &[f64]) -> Result<Self, Error> {
        Self::with_opts(options)
    }
}

impl Counting for IntGauge {
    const TYPE: MetricType = MetricType::GAUGE;

    fn new(options: Opts, _: &[f64]) -> Result<Self, Error> {
        Self::with_opts(options)
    }
}

impl Counting for Gauge {
    const TYPE: MetricType = MetricType::GAUGE;

    fn new(options: Opts, _: &[f64]) -> Result<Self, Error> {
        Self::with_opts(options)
    }
}

impl Counting for Histogram {
    const TYPE: MetricType = MetricType::HISTOGRAM;

    fn new(options: Opts, buckets: &[f64]) -> Result<Self, Error> {
        Self::with_opts(HistogramOpts::from(options).buckets(buckets.to_vec()))
    }
}

impl<S: Counting> Family<S> {
    /// None yet; `buckets` are those of a histogram.
    pub(super) fn register(
        registry: &Registry,
        metric: &'static Metric,
        buckets: &'static [f64],
    ) -> Result<Self, Error> {
        let labels = metric.labels.iter().map(|label| (*label).to_owned());
        let (name, help) = (metric.name.to_owned(), metric.help.to_owned());
        let desc = Desc::new(name, help, labels.collect(), Default::default())?;
        let family = Self {
            metric,
            desc: Arc::new(desc),
            buckets,
            series: Arc::default(),
        };
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    /// The series with these label values, in the order of the catalogue.
    pub(super) fn of<V: AsRef<str>>(&self, values: &[V]) -> S {
        let values: Vec<_> = values
            .iter()
            .map(|value| value.as_ref().to_owned())
            .collect();
        let mut all = self.series();
        let series = all.entry(values);
        series
            .or_insert_with_key(|values| self.make(values))
            .clone()
    }

    fn make(&self, values: &[String]) -> S {
        let Metric { name, labels, .. } = self.metric;
        assert_eq!(labels.len(), values.len(), "values of the labels of {name}");
        let labels = labels.iter().map(|label| (*label).to_owned());
        let labels = labels.zip(values.iter().cloned()).collect();
        let options = Opts::new(*name, self.metric.help).const_labels(labels);
        S::new(options, self.buckets).expect("names and buckets are good: it is registered")
    }

    /// The series of a metric without labels.
    pub(super) fn one(&self) -> S {
        self.of::<&str>(&[])
    }

    /// Removes the series that have these values of these labels. Whoever holds one goes on counting
    /// where nobody sees it; a new look-up begins at zero.
    pub(super) fn forget(&self, labels: &[(&str, &str)]) {
        let places: Vec<_> = labels
            .iter()
            .map(|(label, value)| (self.metric.place(label), *value))
            .collect();
        let is_gone =
            |values: &[String]| places.iter().all(|(place, value)| values[*place] == *value);
        self.series().retain(|values, _| !is_gone(values));
    }

    fn series(&self) -> MutexGuard<'_, BTreeMap<Vec<String>, S>> {
        // Each change leaves it whole.
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Counting> Collector for Family<S> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(self.metric.name.to_owned());
        family.set_help(self.metric.help.to_owned());
        family.set_field_type(S::TYPE);
        let all = self.series();
        family.set_metric(all.values().map(S::metric).collect());
        vec![family]
    }
}
