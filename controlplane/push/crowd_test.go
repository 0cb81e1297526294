package push_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/placement"
)

const (
	crowdPartitions = 1024
	crowdOwners     = 3
)

// crowd is a fleet of clients that acknowledge everything. It is a process of its own, this program once more, so that
// what a benchmark measures is the server alone.
type crowd struct {
	cells int // partitions of all proxies together
	in    io.WriteCloser
	out   *bufio.Reader
}

// crowdAddress is the environment variable that makes this program a crowd: the server's address and how many proxies.
const crowdAddress = "PRISM_TEST_CROWD"

// newCrowd connects proxies, each with the partitions that placement gives it. It ends with the benchmark.
func newCrowd(b *testing.B, address string, proxies int) *crowd {
	program := exec.Command(os.Args[0])
	program.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", crowdAddress, address, proxies))
	program.Stderr = os.Stderr
	in, err := program.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := program.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := program.Start(); err != nil {
		b.Fatal(err)
	}
	c := &crowd{cells: crowdPartitions * crowdOwners, in: in, out: bufio.NewReader(out)}
	b.Cleanup(func() {
		in.Close()
		program.Wait()
	})
	return c
}

// await returns when so many changes of partitions more have been acknowledged.
func (c *crowd) await(b *testing.B, changes int) { c.ask(b, fmt.Sprintf("await %d", changes)) }

// again has all proxies come back with the states that they have, and returns how many resources they are sent.
func (c *crowd) again(b *testing.B) int {
	resources, err := strconv.Atoi(c.ask(b, "again"))
	if err != nil {
		b.Fatal(err)
	}
	return resources
}

func (c *crowd) ask(b *testing.B, question string) string {
	fmt.Fprintln(c.in, question)
	answer, err := c.out.ReadString('\n')
	if err != nil {
		b.Fatalf("the crowd does not answer: %v", err)
	}
	return strings.TrimSpace(answer)
}

// runCrowd is the crowd's process. It ends when it is asked nothing more.
func runCrowd(what string) error {
	address, count, _ := strings.Cut(what, " ")
	proxies, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	members := make([]placement.Member, proxies)
	for i := range members {
		members[i] = placement.Member{ID: fmt.Sprintf("proxy-%04d", i)}
	}
	owners := placement.Compute(members, crowdPartitions, crowdOwners)
	all := make([]*crowdProxy, proxies)
	acks := make(chan struct{}, 1<<20)
	for i := range all {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		all[i] = &crowdProxy{id: members[i].ID, conn: conn, acks: acks, roots: map[string]string{}}
	}
	for p := range ident.Partition(crowdPartitions) {
		for _, o := range owners.Owners(p) {
			all[o].names = append(all[o].names, p.String())
		}
	}
	for _, p := range all {
		if err := p.connect(nil); err != nil {
			return err
		}
	}
	for questions := bufio.NewScanner(os.Stdin); questions.Scan(); {
		if changes, ok := strings.CutPrefix(questions.Text(), "await "); ok {
			n, err := strconv.Atoi(changes)
			if err != nil {
				return err
			}
			for range n {
				<-acks
			}
			fmt.Println("done")
			continue
		}
		answers := make(chan int, proxies)
		for _, p := range all {
			go func() {
				p.leave()
				if err := p.connect(answers); err != nil {
					panic(err)
				}
			}()
		}
		resources := 0
		for range all {
			resources += <-answers
		}
		fmt.Println(resources)
	}
	return nil
}

// crowdProxy is one client.
type crowdProxy struct {
	id    string
	conn  *grpc.ClientConn
	names []string
	acks  chan<- struct{}

	leave func() // the stream; returns when it has ended
	roots map[string]string
}

// connect opens a stream with what is here. What the first answer for partitions holds is counted to answers, unless that
// is nil.
func (p *crowdProxy) connect(answers chan<- int) error {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		cancel()
		return err
	}
	initial := map[string]string{}
	if shared, ok := p.roots["shared"]; ok {
		initial["shared"] = shared
	}
	stream.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: node(p.id, 0), TypeUrl: push.SharedType, ResourceNamesSubscribe: []string{"shared"}, InitialResourceVersions: initial,
	})
	stream.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: push.NamespaceType, ResourceNamesSubscribe: p.names, InitialResourceVersions: p.roots,
	})
	var receiving sync.WaitGroup
	receiving.Go(func() { p.receive(stream, answers) })
	p.leave = func() {
		cancel()
		receiving.Wait()
	}
	return nil
}

func (p *crowdProxy) receive(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, answers chan<- int) {
	for {
		r, err := stream.Recv()
		if err != nil {
			return
		}
		stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
		if r.GetTypeUrl() == push.NamespaceType && answers != nil {
			answers <- len(r.GetResources())
			answers = nil
		}
		for _, resource := range r.GetResources() {
			if resource.GetResource().GetTypeUrl() != push.SentinelType {
				continue
			}
			sentinel := &configv1.Sentinel{}
			if err := proto.Unmarshal(resource.GetResource().GetValue(), sentinel); err != nil {
				panic(err)
			}
			version := resource.GetVersion()
			if r.GetTypeUrl() == push.NamespaceType {
				shared, _ := ident.HashFrom(sentinel.GetSharedRoot())
				version += "/" + shared.String()
				p.acks <- struct{}{}
			}
			p.roots[resource.GetName()] = version
		}
	}
}
