package lifecycle_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/prism-gateway/prism/shared/lifecycle"
)

// journal collects what happened, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) note(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

// part runs until it is told to stop and notes what happens to it.
func (j *journal) part(name string) lifecycle.Part {
	return lifecycle.Part{
		Name: name,
		Run: func(ctx context.Context) error {
			<-ctx.Done()
			j.note(name + " ends")
			return ctx.Err()
		},
		Started: func(context.Context) error {
			time.Sleep(time.Second)
			j.note(name + " is up")
			return nil
		},
		Drain: func(context.Context) error {
			j.note(name + " drains")
			return nil
		},
	}
}

func run(ctx context.Context, t *testing.T, parts ...lifecycle.Part) error {
	t.Helper()
	g, err := lifecycle.New(lifecycle.Config{Log: slog.New(slog.DiscardHandler), StopTimeout: 5 * time.Second}, parts...)
	if err != nil {
		t.Fatal(err)
	}
	return g.Run(ctx)
}

func TestPartsStartInOrderAndStopInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var j journal
		if err := run(ctx, t, j.part("store"), j.part("server")); err != nil {
			t.Fatal(err)
		}
		want := []string{"store is up", "server is up", "server drains", "server ends", "store drains", "store ends"}
		if !slices.Equal(j.lines, want) {
			t.Errorf("got %q\nwant %q", j.lines, want)
		}
	})
}

func TestTheFirstFailureStopsAll(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		change func(*lifecycle.Part) // of the second part of three
		want   string
		lines  []string
	}{
		"while it runs": {
			change: func(p *lifecycle.Part) {
				p.Run = func(context.Context) error { time.Sleep(time.Minute); return boom }
			},
			want:  "b: boom",
			lines: []string{"a is up", "b is up", "c is up", "c drains", "c ends", "a drains", "a ends"},
		},
		"ending without an error is one": {
			change: func(p *lifecycle.Part) {
				p.Run = func(context.Context) error { time.Sleep(time.Minute); return nil }
			},
			want:  "b ended by itself",
			lines: []string{"a is up", "b is up", "c is up", "c drains", "c ends", "a drains", "a ends"},
		},
		"while it starts": {
			change: func(p *lifecycle.Part) {
				p.Run = func(context.Context) error { return boom }
				p.Started = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			},
			want:  "b: boom",
			lines: []string{"a is up", "a drains", "a ends"},
		},
		"when it cannot start": {
			change: func(p *lifecycle.Part) {
				p.Started = func(context.Context) error { return boom }
			},
			want:  "b did not start: boom",
			lines: []string{"a is up", "b drains", "b ends", "a drains", "a ends"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				b := j.part("b")
				tc.change(&b)
				err := run(t.Context(), t, j.part("a"), b, j.part("c"))
				if err == nil || err.Error() != tc.want {
					t.Errorf("got %v, want %s", err, tc.want)
				}
				if !slices.Equal(j.lines, tc.lines) {
					t.Errorf("got %q\nwant %q", j.lines, tc.lines)
				}
			})
		})
	}
}

func TestAStuckPartIsNamedAndTheOthersStillEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var j journal
		release := make(chan struct{})
		stuck := lifecycle.Part{Name: "stuck", Run: func(context.Context) error { <-release; return nil }}
		err := run(ctx, t, j.part("store"), stuck)
		if err == nil || !strings.Contains(err.Error(), "not stopped within 5s: ") || !strings.Contains(err.Error(), "stuck") {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if got := j.lines[len(j.lines)-1]; got != "store ends" {
			t.Errorf("the last is %q", got)
		}
		close(release)
	})
}

func TestErrorsOfStoppingAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var j journal
		p := j.part("server")
		p.Run = func(ctx context.Context) error { <-ctx.Done(); return errors.New("port lost") }
		p.Drain = func(context.Context) error { return errors.New("two calls left") }
		err := run(ctx, t, p)
		if err == nil || err.Error() != "draining server: two calls left\nstopping server: port lost" {
			t.Errorf("got %v", err)
		}
	})
}

func TestWhoToldItToStopIsLogged(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("terminated"))
	var log strings.Builder
	g, err := lifecycle.New(lifecycle.Config{Log: slog.New(slog.NewTextHandler(&log, nil))}, (&journal{}).part("store"))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Run(ctx); err != nil || !strings.Contains(log.String(), "cause=terminated") {
		t.Errorf("%v; logged %q", err, log.String())
	}
}

func TestStoppingWhileStartingStartsNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		var j journal
		b := j.part("b")
		b.Started = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		if err := run(ctx, t, j.part("a"), b, j.part("c")); err != nil {
			t.Error(err)
		}
		want := []string{"a is up", "b drains", "b ends", "a drains", "a ends"}
		if !slices.Equal(j.lines, want) {
			t.Errorf("got %q\nwant %q", j.lines, want)
		}
	})
}

func TestAGroupChecksItsParts(t *testing.T) {
	if _, err := lifecycle.New(lifecycle.Config{}); err == nil {
		t.Error("a group without a log was made")
	}
	if _, err := lifecycle.New(lifecycle.Config{Log: slog.Default()}, lifecycle.Part{Name: "x"}); err == nil {
		t.Error("a part without Run was taken")
	}
}

func TestReadinessNeedsEveryCondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := lifecycle.NewReadiness("config", "listen")
		s, changed := r.State()
		if s.Ready || !slices.Equal(s.Reasons(), []string{"config: starting", "listen: starting"}) {
			t.Errorf("at first %+v", s)
		}
		r.Ready("listen")
		<-changed
		time.Sleep(time.Minute)
		r.NotReady("config", "no control plane answers")
		s, changed = r.State()
		if s.Ready || !slices.Equal(s.Reasons(), []string{"config: no control plane answers"}) {
			t.Errorf("then %+v", s)
		}
		if age := time.Since(s.Conditions[0].Since); age != time.Minute {
			t.Errorf("config is not ready since %v, want a minute: another reason is no change", age)
		}
		r.NotReady("config", "no control plane answers")
		select {
		case <-changed:
			t.Error("saying the same again is no change")
		default:
		}
		r.Ready("config")
		if s, _ := r.State(); !s.Ready || s.Conditions[0].Since != time.Now() {
			t.Errorf("at last %+v", s)
		}
	})
}

func TestReadinessOverHTTP(t *testing.T) {
	r := lifecycle.NewReadiness("config")
	ask := func(h http.HandlerFunc) (int, lifecycle.State) {
		w := httptest.NewRecorder()
		h(w, httptest.NewRequest(http.MethodGet, "/", nil))
		var s lifecycle.State
		if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		return w.Code, s
	}
	if code, s := ask(r.ServeReady); code != 503 || s.Ready || s.Conditions[0].Reason != "starting" {
		t.Errorf("before: %d %+v", code, s)
	}
	if code, _ := ask(r.ServeHealth); code != 200 {
		t.Errorf("health before ready: %d", code)
	}
	r.Ready("config")
	if code, s := ask(r.ServeReady); code != 200 || !s.Ready {
		t.Errorf("after: %d %+v", code, s)
	}
	r.Follow(func() lifecycle.Following { return lifecycle.Following{Snapshot: 3} })
	if _, s := ask(r.ServeReady); s.Following == nil || s.Following.Snapshot != 3 || s.Following.Age != 0 {
		t.Errorf("what was never heard of has an age: %+v", s.Following)
	}
	r.Follow(func() lifecycle.Following { return lifecycle.Following{Heard: time.Now().Add(-time.Hour)} })
	if code, s := ask(r.ServeReady); code != 200 || s.Following.Age < time.Hour.Seconds() {
		t.Errorf("old: %d %+v", code, s.Following)
	}
}

func TestServersServeUntilTheyAreStopped(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	grpcAt, httpAt := listen(), listen()
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, health.NewServer())
	entered, release := make(chan struct{}), make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		w.WriteHeader(http.StatusTeapot)
	})

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, t, lifecycle.GRPC("grpc", server, grpcAt), lifecycle.HTTP("http", handler, httpAt))
	}()
	conn, err := grpc.NewClient(grpcAt.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	code := make(chan int, 1)
	go func() {
		resp, err := http.Get("http://" + httpAt.Addr().String())
		if err != nil {
			code <- -1
			return
		}
		resp.Body.Close()
		code <- resp.StatusCode
	}()
	<-entered
	cancel()
	close(release)
	if got := <-code; got != http.StatusTeapot {
		t.Errorf("the request under way got %d", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestANoteIsToldAndKeepsNothingFromBeingReady(t *testing.T) {
	r := lifecycle.NewReadiness()
	r.Note("installation", "somebody else answers")
	if s, _ := r.State(); !s.Ready || len(s.Reasons()) != 0 || s.Conditions[0].Reason != "somebody else answers" {
		t.Errorf("the state is %+v", s)
	}
	r.Note("installation", "")
	if s, _ := r.State(); !s.Ready || s.Conditions[0].Reason != "" {
		t.Errorf("the state is %+v", s)
	}
}

func TestAServerThatIsStoppedBeforeItServesIsNoError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	part := lifecycle.GRPC("grpc", grpc.NewServer(), l)
	if err := part.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := part.Run(t.Context()); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("its listener is open: %v", err)
	}
}
