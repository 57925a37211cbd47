// SPDX-License-Identifier: GPL-2.0
//! HTTP: `/metrics`, and a word at `/`. One thread serves all connections and another reads the tables, for one
//! scrape at a time.
//!
//! Each connection has one request and so long to be done ([`CONNECTION`]), and there are so many at once
//! ([`CONNECTIONS`]): who is slow keeps others waiting, but not for ever. A read that does not come back
//! is an answer of 503 to this scrape and to those behind it.

use super::{collect::Collector, format::Format};
use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    header::{HeaderValue, ACCEPT, ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
    Method, Request, Response, StatusCode,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    fmt,
    future::poll_fn,
    io::Write,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Builder,
    signal::unix::{signal, Signal, SignalKind},
    sync::Semaphore,
    task::{self, JoinError},
    time::{sleep, timeout},
};

/// How many connections at once; others wait to be accepted.
const CONNECTIONS: usize = 32;
/// How long one may take, from its first byte to its last.
const CONNECTION: Duration = Duration::from_secs(20);
/// How long until it has said what it wants.
const REQUEST: Duration = Duration::from_secs(5);
/// How long a scrape waits for the tables, and for those before it: a bit less than Prometheus by default does.
const TABLES: Duration = Duration::from_secs(9);
/// How long a read that does not come back is waited for at the end.
const END: Duration = Duration::from_secs(1);

const INDEX: &str = "<!DOCTYPE html>\n<title>kvmate export</title>\n\
                     <p>What the kernel module kvmate tells of VMs: <a href=\"/metrics\">/metrics</a>\n";

/// Serve until SIGTERM or SIGINT.
pub fn serve(address: SocketAddr, collector: Collector) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("no event loop")?;
    let done = runtime.block_on(async {
        // What ends us is known before anybody knows that we are there.
        let mut ends = Ends::new().context("signals")?;
        let listener = listen(address).await?;
        let at = listener.local_addr().context("the socket's address")?;
        // Who started this may have closed it.
        let _ = writeln!(std::io::stdout(), "kvmate: http://{at}/metrics");
        task::spawn(accept(listener, Arc::new(Exporter::new(collector))));
        ends.come().await;
        Ok(())
    });
    runtime.shutdown_timeout(END);
    done
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| {
        format!(
            "cannot listen at {address}: choose another by --listen, or end who has it (ss -ltnp)"
        )
    })
}

/// What ends it.
struct Ends([Signal; 2]);

impl Ends {
    fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self([terminate, signal(SignalKind::interrupt())?]))
    }

    async fn come(&mut self) {
        let signals = &mut self.0;
        poll_fn(|context| {
            let come = signals
                .iter_mut()
                .any(|one| one.poll_recv(context).is_ready());
            if come {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

async fn accept(listener: TcpListener, exporter: Arc<Exporter>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = free.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let exporter = exporter.clone();
                task::spawn(async move {
                    // How it ended only who asked needs to know.
                    let _ = timeout(CONNECTION, connection(stream, exporter)).await;
                    drop(place);
                });
            }
            // It went before it was accepted; or there are no descriptors, until there are.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(stream: TcpStream, exporter: Arc<Exporter>) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let exporter = exporter.clone();
        async move { Ok::<_, Infallible>(exporter.answer(request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// What answers.
struct Exporter {
    collector: Arc<Mutex<Collector>>,
    /// Who reads the tables.
    turn: Arc<Semaphore>,
}

impl Exporter {
    fn new(collector: Collector) -> Self {
        Self {
            collector: Arc::new(Mutex::new(collector)),
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let known = ["/", "/metrics"].contains(&request.uri().path());
        if known && ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut refused = said(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only");
            let headers = refused.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match request.uri().path() {
            "/metrics" => {
                let accept = request.headers().get_all(ACCEPT).iter();
                let accept: Vec<_> = accept.filter_map(|value| value.to_str().ok()).collect();
                self.metrics(Format::wanted(&accept.join(","))).await
            }
            "/" => with(StatusCode::OK, "text/html; charset=utf-8", INDEX.into()),
            _ => said(StatusCode::NOT_FOUND, "there is /metrics only"),
        }
    }

    async fn metrics(&self, format: Format) -> Response<Full<Bytes>> {
        match timeout(TABLES, self.scrape(format)).await {
            Ok(Ok(Ok(text))) => with(StatusCode::OK, format.content_type(), text),
            Ok(_) => said(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the tables could not be told of",
            ),
            Err(_) => said(
                StatusCode::SERVICE_UNAVAILABLE,
                "the module's tables do not answer, or not in time for so many scrapes",
            ),
        }
    }

    async fn scrape(&self, format: Format) -> Result<Result<String, fmt::Error>, JoinError> {
        // Nobody closes it.
        let turn = self.turn.clone().acquire_owned().await.ok();
        let collector = self.collector.clone();
        let read = move || {
            let _turn = turn;
            let mut collector = collector.lock().unwrap_or_else(PoisonError::into_inner);
            collector.scrape().text().map(|text| format.of(text))
        };
        task::spawn_blocking(read).await
    }
}

fn said(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    with(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn with(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
