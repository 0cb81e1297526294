package kv

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// onceFlag adds --once.
func onceFlag(cmd *cobra.Command, once *bool) {
	cmd.Flags().BoolVar(once, "once", false, "be done once also when the answer is lost and the command asks again; needs keyvalue.idempotency")
}

// token is a new idempotency token if one is wanted.
func token(once bool) *datav1.IdempotencyToken {
	if !once {
		return nil
	}
	nonce := make([]byte, 16)
	rand.Read(nonce)
	return &datav1.IdempotencyToken{Nonce: nonce, MadeAt: timestamppb.Now()}
}

func (c *Commands) increment() *cobra.Command {
	var by, initial int64
	var ttl time.Duration
	var once bool
	cmd := &cobra.Command{
		Use:     "increment NAMESPACE ID [KEY]",
		Short:   "Add to a counter and print the sum",
		Example: "  prismctl kv increment user-profiles alice visits\n  prismctl kv increment user-profiles alice credit --by -5 --once",
		Args:    cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, key, err := c.name(args[1:])
			if err != nil {
				return err
			}
			req := &datav1.IncrementRequest{Namespace: args[0], Id: id, Key: key, Delta: by, Initial: initial, Token: token(once)}
			if cmd.Flags().Changed("ttl") {
				if ttl <= 0 {
					return terminal.Misusef("--ttl %v: want more than 0, or leave it out for the namespace's", ttl)
				}
				req.Expiry = &datav1.Expiry{Is: &datav1.Expiry_Ttl{Ttl: durationpb.New(ttl)}}
			}
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.IncrementResponse, error) {
				return kv.Increment(ctx, req)
			}, func(w io.Writer, resp *datav1.IncrementResponse) { fmt.Fprintln(w, resp.GetValue()) })
		},
	}
	cmd.Flags().Int64Var(&by, "by", 1, "what is added; may be negative")
	cmd.Flags().Int64Var(&initial, "initial", 0, "what an absent counter counts as")
	terminal.DurationVar(cmd.Flags(), &ttl, "ttl", 0, "how long the counter lives from now on; default the namespace's")
	onceFlag(cmd, &once)
	return cmd
}

func (c *Commands) transact() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "transact NAMESPACE ID OPERATION...",
		Short: "Check and write several items of an id, all or none",
		Long: `Check and write several items of an id, all or none. The operations, at most 100, are checks

  absent:KEY  present:KEY  version:KEY=VERSION (base64, as put prints it)

and writes, done one after the other once all checks hold:

  put:KEY=VALUE  delete:KEY

The empty key is written as nothing: put:=VALUE.`,
		Example: "  prismctl kv transact accounts alice version:balance=AAE= put:balance=90 put:last=bob --once",
		Args:    cobra.MinimumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := c.decode(args[1])
			if err != nil {
				return err
			}
			req := &datav1.TransactRequest{Namespace: args[0], Id: id, Token: token(once)}
			for _, text := range args[2:] {
				if err := c.operation(req, text); err != nil {
					return err
				}
			}
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.TransactResponse, error) {
				return kv.Transact(ctx, req)
			}, func(w io.Writer, resp *datav1.TransactResponse) {
				g := terminal.NewGrid("WRITE", "KEY", "VERSION")
				for i, r := range resp.GetResults() {
					if p := req.GetWrites()[i].GetPut(); p != nil {
						g.Row("put", c.show(p.GetKey()), base64.StdEncoding.EncodeToString(r.GetVersion()))
					} else {
						g.Row("delete", c.show(req.GetWrites()[i].GetDelete().GetKey()), "")
					}
				}
				g.Write(w)
			})
		},
	}
	onceFlag(cmd, &once)
	return cmd
}

// operation adds to a transaction what a person wrote.
func (c *Commands) operation(req *datav1.TransactRequest, text string) error {
	what, rest, ok := strings.Cut(text, ":")
	keyText, value, hasValue := strings.Cut(rest, "=")
	if !ok || hasValue != (what == "put" || what == "version") {
		return terminal.Misusef("%q is no operation: want absent:KEY, present:KEY, version:KEY=VERSION, put:KEY=VALUE or delete:KEY", text)
	}
	key, err := c.decode(keyText)
	if err != nil {
		return err
	}
	switch what {
	case "absent", "present", "version":
		is, err := condition(what == "absent", what == "present", value)
		if err != nil {
			return err
		}
		req.Checks = append(req.Checks, &datav1.Check{Key: key, Condition: is})
	case "put":
		req.Writes = append(req.Writes, &datav1.Write{Op: &datav1.Write_Put{Put: &datav1.PutOp{Id: req.GetId(), Key: key, Value: []byte(value)}}})
	case "delete":
		req.Writes = append(req.Writes, &datav1.Write{Op: &datav1.Write_Delete{Delete: &datav1.DeleteOp{Id: req.GetId(), Key: key}}})
	default:
		return terminal.Misusef("%q is no operation: want absent:KEY, present:KEY, version:KEY=VERSION, put:KEY=VALUE or delete:KEY", text)
	}
	return nil
}

func (c *Commands) batchGet() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:     "batch-get NAMESPACE ID...",
		Short:   "Read an item of each of several ids at once",
		Example: "  prismctl kv batch-get user-profiles alice bob --key name",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			of, err := c.decode(key)
			if err != nil {
				return err
			}
			req := &datav1.BatchGetRequest{Namespace: args[0]}
			for _, text := range args[1:] {
				id, err := c.decode(text)
				if err != nil {
					return err
				}
				req.Names = append(req.Names, &datav1.Name{Id: id, Key: of})
			}
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.BatchGetResponse, error) {
				return kv.BatchGet(ctx, req)
			}, func(w io.Writer, resp *datav1.BatchGetResponse) {
				g := terminal.NewGrid("ID", "BYTES", "MODIFIED", "EXPIRES", "VALUE")
				for i, r := range resp.GetResults() {
					id, item := c.show(req.GetNames()[i].GetId()), r.GetItem()
					switch {
					case r.GetStatus().GetCode() != 0:
						g.Row(id, "", "", "", "("+r.GetStatus().GetMessage()+")")
					case item == nil:
						g.Row(id, "", "", "", "(absent)")
					default:
						g.Row(id, strconv.Itoa(len(item.GetValue())), terminal.Time(item.GetModifiedAt()), terminal.Time(item.GetExpireAt()), preview(item.GetValue()))
					}
				}
				g.Write(w)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the key of each item; default the empty one")
	return cmd
}

// line is one write of a batch as it stands in a file.
type line struct {
	ID, Key, Value string
	Delete         bool
	TTL            string
}

func (c *Commands) batchWrite() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "batch-write NAMESPACE FILE",
		Short: "Do the writes of a file, each by itself",
		Long: `Do the writes of a file, or of standard input for -, each by itself: one JSON object on each line, such as

  {"id": "alice", "key": "name", "value": "Alice", "ttl": "24h"}
  {"id": "bob", "key": "name", "delete": true}

They go in batches of 1,000. What fails is told with its line, and the command fails.`,
		Example: "  prismctl kv batch-write user-profiles profiles.jsonl",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			source := args[1]
			if source != "-" {
				source = "@" + source
			}
			data, err := c.value(source)
			if err != nil {
				return err
			}
			writes, err := c.lines(args[1], data)
			if err != nil {
				return err
			}
			failed := 0
			err = ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.BatchWriteResponse, error) {
				all := &datav1.BatchWriteResponse{}
				for from := 0; from < len(writes); from += maxBatch {
					some := writes[from:min(from+maxBatch, len(writes))]
					resp, err := kv.BatchWrite(ctx, &datav1.BatchWriteRequest{Namespace: args[0], Writes: some, Token: token(once)})
					if err != nil {
						return nil, fmt.Errorf("%d of %d writes were done or told of before: %w", from, len(writes), err)
					}
					all.Results = append(all.Results, resp.GetResults()...)
				}
				return all, nil
			}, func(w io.Writer, all *datav1.BatchWriteResponse) {
				for i, r := range all.GetResults() {
					if s := r.GetStatus(); s.GetCode() != int32(codes.OK) {
						failed++
						fmt.Fprintf(w, "line %d: %s\n", i+1, terminal.Clean(s.GetMessage()))
					}
				}
				fmt.Fprintf(w, "%d of %d writes are done\n", len(all.GetResults())-failed, len(all.GetResults()))
			})
			if err == nil && failed > 0 {
				err = fmt.Errorf("%d writes failed", failed)
			}
			return err
		},
	}
	onceFlag(cmd, &once)
	return cmd
}

// maxBatch is the most writes of one call.
const maxBatch = 1000

// lines reads the writes of a file.
func (c *Commands) lines(file string, data []byte) ([]*datav1.Write, error) {
	var writes []*datav1.Write
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 8<<20)
	for n := 1; lines.Scan(); n++ {
		in := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		in.DisallowUnknownFields()
		var l line
		if err := in.Decode(&l); err != nil {
			return nil, terminal.Misusef("%s:%d: %v", file, n, err)
		}
		id, key, err := c.name([]string{l.ID, l.Key})
		if err != nil {
			return nil, terminal.Misusef("%s:%d: %v", file, n, err)
		}
		if l.Delete {
			writes = append(writes, &datav1.Write{Op: &datav1.Write_Delete{Delete: &datav1.DeleteOp{Id: id, Key: key}}})
			continue
		}
		put := &datav1.PutOp{Id: id, Key: key, Value: []byte(l.Value)}
		if l.TTL != "" {
			ttl, err := time.ParseDuration(l.TTL)
			if err != nil || ttl <= 0 {
				return nil, terminal.Misusef("%s:%d: ttl %q: want a positive duration such as 24h", file, n, l.TTL)
			}
			put.Expiry = &datav1.Expiry{Is: &datav1.Expiry_Ttl{Ttl: durationpb.New(ttl)}}
		}
		writes = append(writes, &datav1.Write{Op: &datav1.Write_Put{Put: put}})
	}
	return writes, lines.Err()
}
