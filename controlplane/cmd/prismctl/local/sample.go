package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// introduce registers the stores, makes the sample namespace, proves that it answers through every proxy, and says what
// to try.
func (r *prism) introduce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	config, err := r.plan.client(r.plan.admin.Address, nil)
	if err != nil {
		return err
	}
	control, err := client.DialControl(config)
	if err != nil {
		return err
	}
	defer control.Close()
	note := &controlv1.ChangeNote{Author: "prismctl local up", Message: "a Prism on this machine"}
	changes := &adminv1.ApplyBackendsRequest{Note: note}
	for _, b := range r.plan.backends() {
		changes.Changes = append(changes.Changes, &adminv1.BackendChange{Backend: b})
	}
	if _, err := control.Admin.ApplyBackends(ctx, changes); err != nil {
		return fmt.Errorf("registering the backends: %w", faultgrpc.FromStatus(err))
	}
	docs, err := admission.ParseYAML("sample.yaml", sampleFile)
	if err != nil {
		return err
	}
	name := docs[0].Request.GetNamespace()
	if err := r.sample(ctx, control, docs[0].Request, note); err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	if err := r.prove(ctx, name); err != nil {
		return err
	}
	if r.plan.auth != nil {
		if err := r.introducePrivate(ctx, control, note); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up = true
	r.welcome(r.term.Out)
	return nil
}

// sample makes the sample namespace, unless a person has changed it since, and waits until it is live.
func (r *prism) sample(ctx context.Context, control *client.Control, request *configv1.NamespaceRequest, note *controlv1.ChangeNote) error {
	name := request.GetNamespace()
	_, err := control.Namespaces.CreateNamespace(ctx, &controlv1.CreateNamespaceRequest{Request: request, Note: note})
	if f := faultgrpc.FromStatus(err); f != nil && f.Code != fault.Exists {
		return f
	}
	got, err := control.Namespaces.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: name})
	if err != nil {
		return faultgrpc.FromStatus(err)
	}
	stream, err := control.Namespaces.WatchNamespaceStatus(ctx, &controlv1.WatchNamespaceStatusRequest{
		Namespace: name, UntilSnapshot: got.GetNamespace().GetSnapshotVersion()})
	if err != nil {
		return faultgrpc.FromStatus(err)
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			r.show("namespace "+name, "live on every owner")
			return nil
		}
		if err != nil {
			return faultgrpc.FromStatus(err)
		}
		serving := 0
		for _, o := range resp.GetStatus().GetOwners() {
			if o.GetStage() == configv1.Stage_STAGE_SERVING {
				serving++
			}
		}
		r.show("namespace "+name, fmt.Sprintf("live on %d of %d owners", serving, len(resp.GetStatus().GetOwners())))
	}
}

// prove writes through each proxy and reads what was written through the one after it.
func (r *prism) prove(ctx context.Context, namespace string) error {
	id := []byte("prismctl-local-up")
	for i, writer := range r.plan.proxies {
		reader := r.plan.proxies[(i+1)%len(r.plan.proxies)]
		value := []byte("written through " + writer.Name)
		err := r.through(writer, nil, func(kv datav1.KeyValueClient) error {
			_, err := kv.Put(ctx, &datav1.PutRequest{Namespace: namespace, Id: id, Value: value})
			return err
		})
		if err != nil {
			return err
		}
		err = r.through(reader, nil, func(kv datav1.KeyValueClient) error {
			resp, err := kv.Get(ctx, &datav1.GetRequest{Namespace: namespace, Id: id})
			if err == nil && !bytes.Equal(resp.GetItem().GetValue(), value) {
				return fmt.Errorf("read %q, want %q", resp.GetItem().GetValue(), value)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return r.through(r.plan.proxies[0], nil, func(kv datav1.KeyValueClient) error {
		_, err := kv.Delete(ctx, &datav1.DeleteRequest{Namespace: namespace, Id: id})
		return err
	})
}

func (r *prism) through(proxy Program, token client.TokenSource, call func(datav1.KeyValueClient) error) error {
	config, err := r.plan.client(proxy.Address, token)
	if err != nil {
		return err
	}
	c, err := client.Dial(config)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := call(c.KeyValue); err != nil {
		return fmt.Errorf("the sample namespace does not answer through %s: %w", proxy.Name, err)
	}
	return nil
}

// introducePrivate makes the namespace whose callers log in, and proves that its writer writes, its reader reads, and neither a
// stranger nor nobody does.
func (r *prism) introducePrivate(ctx context.Context, control *client.Control, note *controlv1.ChangeNote) error {
	docs, err := admission.ParseYAML("private.yaml", privateFile)
	if err != nil {
		return err
	}
	name := docs[0].Request.GetNamespace()
	if err := r.sample(ctx, control, docs[0].Request, note); err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	put := func(kv datav1.KeyValueClient) error {
		_, err := kv.Put(ctx, &datav1.PutRequest{Namespace: name, Id: []byte("welcome"), Value: []byte("Only who is logged in reads this.")})
		return err
	}
	get := func(kv datav1.KeyValueClient) error {
		_, err := kv.Get(ctx, &datav1.GetRequest{Namespace: name, Id: []byte("welcome")})
		return err
	}
	// The issuer has new keys with each start, so a token from before is good no more.
	if _, err := r.plan.auth.logIn(ctx, "ann", Password); err != nil {
		return err
	}
	for _, call := range []struct {
		user    string
		do      func(datav1.KeyValueClient) error
		refused bool
	}{{"ann", put, false}, {"ben", get, false}, {"ben", put, true}, {"eve", get, true}, {"", get, true}} {
		var token client.TokenSource
		if call.user != "" {
			got, err := logIn(ctx, r.plan.auth.issuer(), call.user, Password)
			if err != nil {
				return err
			}
			token = shown(got)
		}
		err := r.through(r.plan.proxies[0], token, call.do)
		f := faultgrpc.FromStatus(err)
		if refused := f != nil && (f.Code == fault.PermissionDenied || f.Code == fault.Unauthenticated); refused != call.refused || f != nil && !refused {
			return fmt.Errorf("namespace %s does not hold its rules for %q: %w", name, call.user, err)
		}
	}
	return nil
}

// welcome says where everything is and what to try.
func (r *prism) welcome(w io.Writer) {
	self := "prismctl"
	if strings.ContainsRune(os.Args[0], os.PathSeparator) {
		self = os.Args[0]
	}
	var proxies []string
	for _, p := range r.plan.proxies {
		proxies = append(proxies, p.Address)
	}
	fmt.Fprintf(w, `
Prism runs. Ctrl-C stops it.

  control plane  %s   metrics http://%s/metrics
  proxies        %s
  NATS           %s
  logs and data  %s
%s
Try in another shell:

`, r.plan.admin.Address, r.plan.admin.HTTP, strings.Join(proxies, ", "), r.plan.nats.Address, r.plan.dir, r.plan.auth.welcome())
	login := "local login "
	if here, err := openDirectory(target.LocalContext); err != nil || r.plan.dir.file("context.yaml") != string(here) {
		fmt.Fprintf(w, "  export PRISM_ADMIN_ENDPOINT=%s PRISM_DATA_ENDPOINT=%s%s\n", r.plan.admin.Address, strings.Join(proxies, ","), r.plan.auth.variables())
		login = fmt.Sprintf("local --dir %s login ", r.plan.dir)
	}
	tries := []string{
		"kv put sample alice name Alice",
		"kv get sample alice name",
		"kv scan sample alice",
		"namespace get sample",
		"namespace plan -f " + r.plan.dir.file("sample.yaml"),
		"fleet list",
		"snapshot list",
	}
	if r.plan.auth != nil {
		tries = append([]string{"kv put private hello world", login + "ben", "kv get private hello", login + "ann"}, tries...)
	}
	for _, try := range tries {
		fmt.Fprintf(w, "  %s %s\n", self, try)
	}
}
