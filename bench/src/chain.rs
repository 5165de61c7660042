//! What the path costs: the same requests directly, through a pair of sidecars, and through the
//! chain of four proxies.

use serde::Serialize;

use anyhow::Result;

use crate::{
    load::{Load, Pace, Summary},
    output::{Report, median, progress, table},
    own,
    pin::Cores,
    place::Place,
    world::World,
};

/// Options of `chain`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  linkspan-bench chain
  linkspan-bench chain --rounds 5 --rate 500 -o json")]
pub struct Args {
    /// Rounds; each measures every path once, and the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement, after one second that does not count
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// HTTP/2 connections of the client
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Requests in flight on each connection, at saturation
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=100))]
    in_flight: u16,
    /// Requests per second at which latency is measured
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Write the proxies' line per request, too (to a file)
    #[arg(long)]
    access_log: bool,
}

/// The result.
#[derive(Debug, Serialize)]
pub struct Chain {
    /// Who ran where.
    pinned: String,
    /// What was sent.
    load: String,
    paths: Vec<Path>,
}

#[derive(Debug, Serialize)]
struct Path {
    name: &'static str,
    median: Figures,
    /// As shares or multiples of the first path.
    ratio: Figures,
    rounds: Vec<Figures>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Figures {
    requests_per_second: f64,
    p50_micros: f64,
    p99_micros: f64,
}

impl Figures {
    fn new(saturated: &Summary, paced: &Summary) -> Self {
        Self {
            requests_per_second: saturated.per_second,
            p50_micros: paced.p50_micros,
            p99_micros: paced.p99_micros,
        }
    }

    fn median(rounds: &[Self]) -> Self {
        let of = |field: fn(&Self) -> f64| median(rounds.iter().map(field));
        Self {
            requests_per_second: of(|round| round.requests_per_second),
            p50_micros: of(|round| round.p50_micros),
            p99_micros: of(|round| round.p99_micros),
        }
    }

    fn to(self, direct: Self) -> Self {
        Self {
            requests_per_second: self.requests_per_second / direct.requests_per_second,
            p50_micros: self.p50_micros / direct.p50_micros,
            p99_micros: self.p99_micros / direct.p99_micros,
        }
    }
}

/// Measures.
///
/// # Errors
/// When the clusters do not come up or a request fails.
pub async fn run(args: &Args) -> Result<Chain> {
    let cores = Cores::two()?;
    let place = Place::new().pinned(cores).access_log(args.access_log);
    progress("starting two clusters with one origin");
    let mut world = World::start(&place, 1, 1, 0).await?;
    let targets = [
        ("direct", world.origins()[0]),
        ("sidecar pair", world.near().await?),
        ("four-hop chain", world.far().await?),
    ];
    let mut rounds = [const { Vec::new() }; 3];
    for number in 1..=args.rounds {
        for ((name, target), found) in targets.iter().zip(&mut rounds) {
            let load = |pace| Load {
                target: *target,
                connections: args.connections.into(),
                pace,
                warmup_ms: 1000,
                measure_ms: args.seconds * 1000,
            };
            let saturated = own::load(&load(Pace::closed(args.in_flight.into())), cores).await?;
            let paced = own::load(&load(Pace::open(args.rate)), cores).await?;
            let figures = Figures::new(&saturated, &paced);
            progress(&format!(
                "round {number}, {name}: {:.0} requests/s; p50 {:.0} µs, p99 {:.0} µs",
                figures.requests_per_second, figures.p50_micros, figures.p99_micros
            ));
            found.push(figures);
        }
    }
    let names = targets.map(|(name, _)| name);
    Ok(Chain::new(args, cores, names, rounds))
}

impl Chain {
    fn new(
        args: &Args,
        cores: Option<Cores>,
        names: [&'static str; 3],
        rounds: [Vec<Figures>; 3],
    ) -> Self {
        let direct = Figures::median(&rounds[0]);
        let path = |(name, rounds): (_, Vec<Figures>)| {
            let median = Figures::median(&rounds);
            Path {
                name,
                median,
                ratio: median.to(direct),
                rounds,
            }
        };
        let pinned = match cores {
            Some(Cores { ends, path }) => format!(
                "client and origin on core {ends}; sidecars, gateways and federations on core {path}"
            ),
            None => "nothing is pinned: this process may use one core only".to_owned(),
        };
        Self {
            pinned,
            load: format!(
                "HTTP/2 GET, {} connections; at saturation {} in flight on each; \
                 latency at {} requests/s; medians of {} rounds of {} s",
                args.connections, args.in_flight, args.rate, args.rounds, args.seconds
            ),
            paths: names.into_iter().zip(rounds).map(path).collect(),
        }
    }
}

impl Report for Chain {
    fn holds(&self) -> bool {
        true
    }

    fn text(&self) -> String {
        let row = |path: &Path| {
            let (median, ratio) = (path.median, path.ratio);
            [
                path.name.to_owned(),
                format!("{:.0}", median.requests_per_second),
                format!("{:.2}", ratio.requests_per_second),
                format!("{:.0} µs", median.p50_micros),
                format!("{:.1}", ratio.p50_micros),
                format!("{:.0} µs", median.p99_micros),
                format!("{:.1}", ratio.p99_micros),
            ]
        };
        let header = [
            "path",
            "requests/s",
            "of direct",
            "p50",
            "× direct",
            "p99",
            "× direct",
        ];
        let rows = self.paths.iter().map(row).collect();
        format!("{}\n{}\n\n{}", self.pinned, self.load, table(header, rows))
    }
}
