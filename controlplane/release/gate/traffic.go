package gate

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// noticeable is the smallest difference of latency that anybody would take back a release for.
const noticeable = time.Millisecond

// compare says what is worse about the calls of the cells that a release has reached, empty when nothing is. They are
// compared with those of the other cells of the same partitions over the same time; where these took too few, with what
// the same cells did before. While a wave is still held only what cannot be chance counts, which is as many failed calls
// as it takes calls to judge at all.
func compare(cells []Cell, policy *configv1.ReleasePolicy, held bool) string {
	concerned := map[ident.Partition]bool{}
	for i := range cells {
		if c := &cells[i]; c.Reached {
			concerned[c.Partition] = true
		}
	}
	var released, others, before Traffic
	var count int
	var worst string
	var most uint64
	for i := range cells {
		c := &cells[i]
		if !concerned[c.Partition] {
			continue
		}
		calls := c.Now.since(c.Then)
		if !c.Reached {
			others.add(calls)
			continue
		}
		count++
		released.add(calls)
		if c.Then != nil {
			before.add(*c.Then)
		}
		if calls.Failed > most {
			most, worst = calls.Failed, c.Proxy+" in "+c.Partition.String()
		}
	}
	enough := uint64(max(1, policy.GetMinCalls()))
	against, where := others, "on the others"
	if others.Calls < enough {
		against, where = before, "before"
	}
	if released.Calls < enough || against.Calls < enough {
		return "" // too few to say anything
	}
	if (held || released.Failed >= enough) && released.share()-against.share() > policy.GetMaxFailedPoints() {
		return fmt.Sprintf("%s %% of %s calls failed on the %s released, %s %% %s; most of them, %s, on %s",
			percent(released.share()), grouped(released.Calls), plural(count, "cell"), percent(against.share()), where, grouped(most), worst)
	}
	if held && slower(released, against, policy.GetMaxLatencyFactor()) {
		return fmt.Sprintf("%s calls took %s each on the %s released, %s %s",
			grouped(released.Calls), released.mean(), plural(count, "cell"), against.mean(), where)
	}
	return ""
}

// share is how many of the calls failed, in percent.
func (t *Traffic) share() float64 {
	return 100 * float64(t.Failed) / float64(max(1, t.Calls))
}

// slower compares the time that calls took for each that succeeded: a call that fails at once must not make the others
// look faster.
func slower(a, b Traffic, factor float64) bool {
	aDone, bDone := float64(a.Calls-min(a.Failed, a.Calls)), float64(b.Calls-min(b.Failed, b.Calls))
	aTook, bTook := float64(a.Took)*bDone, float64(b.Took)*aDone // brought to one denominator
	return aTook > factor*bTook && aTook-bTook > float64(noticeable)*aDone*bDone
}

// mean is the time that calls took for each that succeeded.
func (t *Traffic) mean() time.Duration {
	d := t.Took / time.Duration(max(1, t.Calls-min(t.Failed, t.Calls)))
	if d > 10*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

func percent(share float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(share, 'f', 1, 64), ".0")
}

// grouped writes a number with a comma at each thousand.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}
