// Package kv has the commands of prismctl about the data of key-value namespaces.
package kv

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/namespace"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
)

// Commands are the commands and what they share.
type Commands struct {
	term     *terminal.Terminal
	target   *target.Flags
	encoding string
}

// New makes the group of commands.
func New(term *terminal.Terminal, t *target.Flags) *cobra.Command {
	c := &Commands{term: term, target: t}
	cmd := &cobra.Command{
		Use:   "kv",
		Short: "Read and write the data of a key-value namespace, through a proxy",
		Long: `Read and write the data of a key-value namespace, through a proxy.

An item is named by an id and, optionally, a key: the items of one id stay together and can be scanned in the order of
their keys. Ids and keys are text unless --encoding says otherwise.`,
		Example: "  prismctl kv put user-profiles alice name Alice\n  prismctl kv get user-profiles alice name",
	}
	cmd.PersistentFlags().StringVar(&c.encoding, "encoding", "text", "how ids and keys are written: text, hex (0x6869) or base64")
	_ = cmd.RegisterFlagCompletionFunc("encoding", cobra.FixedCompletions([]string{"text", "hex", "base64"}, cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag
	cmd.AddCommand(c.get(), c.put(), c.delete(), c.scan(), c.ids(), c.touch(), c.describe(),
		c.increment(), c.transact(), c.batchGet(), c.batchWrite(), c.readValue(), c.writeValue(), c.watch())
	for _, sub := range cmd.Commands() {
		sub.ValidArgsFunction = t.Complete(namespace.Names)
	}
	return cmd
}

// ask makes a command's calls and prints what they come to, as target.AskData does.
func ask[M proto.Message](c *Commands, cmd *cobra.Command, call func(context.Context, datav1.KeyValueClient) (M, error), table func(io.Writer, M)) error {
	return target.AskData(c.target, cmd, func(ctx context.Context, data *client.Client) (M, error) { return call(ctx, data.KeyValue) }, table)
}

// name reads ID [KEY] from the arguments after the namespace.
func (c *Commands) name(args []string) (id, key []byte, err error) {
	if id, err = c.decode(args[0]); err != nil {
		return nil, nil, err
	}
	if len(args) > 1 {
		key, err = c.decode(args[1])
	}
	return id, key, err
}

func (c *Commands) decode(text string) ([]byte, error) {
	switch c.encoding {
	case "text":
		return []byte(text), nil
	case "hex":
		b, err := hex.DecodeString(strings.TrimPrefix(text, "0x"))
		if err != nil {
			return nil, terminal.Misusef("%q is not hexadecimal (--encoding)", text)
		}
		return b, nil
	case "base64":
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, terminal.Misusef("%q is not base64 (--encoding)", text)
		}
		return b, nil
	}
	return nil, terminal.Misusef("--encoding %q: want text, hex or base64", c.encoding)
}

// show writes an id, a key or a version in the encoding asked for; text that cannot be shown is written in hex.
func (c *Commands) show(b []byte) string {
	switch {
	case c.encoding == "base64":
		return base64.StdEncoding.EncodeToString(b)
	case c.encoding == "text" && printable(b):
		return string(b)
	case len(b) == 0:
		return ""
	}
	return "0x" + hex.EncodeToString(b)
}

// printable reports whether a person can read it: UTF-8 without control characters but line breaks and tabs.
func printable(b []byte) bool {
	return utf8.Valid(b) && strings.IndexFunc(string(b), func(r rune) bool {
		return !unicode.IsPrint(r) && r != '\n' && r != '\r' && r != '\t'
	}) < 0
}

func (c *Commands) get() *cobra.Command {
	return &cobra.Command{
		Use:     "get NAMESPACE ID [KEY]",
		Short:   "Write an item's value, byte by byte, to standard output",
		Example: "  prismctl kv get user-profiles alice photo > alice.jpg\n  prismctl kv get user-profiles alice photo -o json",
		Args:    cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, key, err := c.name(args[1:])
			if err != nil {
				return err
			}
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.Item, error) {
				resp, err := kv.Get(ctx, &datav1.GetRequest{Namespace: args[0], Id: id, Key: key})
				item := resp.GetItem()
				switch {
				case err != nil:
					return nil, err
				case item == nil:
					return nil, fmt.Errorf("%s has no item %s", args[0], strings.Join(args[1:], " "))
				case c.term.Format == terminal.Table && c.term.OutTTY && !printable(item.GetValue()):
					return nil, fmt.Errorf("the value is %d bytes that a terminal cannot show; write it to a file with > FILE, or use -o json", len(item.GetValue()))
				}
				return item, nil
			}, func(w io.Writer, item *datav1.Item) {
				_, _ = w.Write(item.GetValue()) // w is memory
				if c.term.OutTTY && !strings.HasSuffix(string(item.GetValue()), "\n") {
					io.WriteString(w, "\n")
				}
			})
		},
	}
}

func (c *Commands) put() *cobra.Command {
	var ttl time.Duration
	var contentType, ifVersion string
	var ifAbsent, ifPresent, once bool
	cmd := &cobra.Command{
		Use:   "put NAMESPACE ID [KEY] VALUE",
		Short: "Write an item",
		Long: `Write an item. VALUE is the text itself, - for standard input, or @FILE for the bytes of a file.

Text that begins with @ goes through standard input; text that begins with - follows after --.`,
		Example: "  prismctl kv put user-profiles alice name Alice --ttl 24h\n" +
			"  prismctl kv put user-profiles alice photo @alice.jpg --content-type image/jpeg\n" +
			"  date | prismctl kv put user-profiles alice seen -",
		Args: cobra.RangeArgs(3, 4),
		RunE: func(cmd *cobra.Command, args []string) error {
			last := len(args) - 1
			id, key, err := c.name(args[1:last])
			if err != nil {
				return err
			}
			value, err := c.value(args[last])
			if err != nil {
				return err
			}
			req := &datav1.PutRequest{Namespace: args[0], Id: id, Key: key, Value: value, ContentType: contentType, Token: token(once)}
			if req.Condition, err = condition(ifAbsent, ifPresent, ifVersion); err != nil {
				return err
			}
			if cmd.Flags().Changed("ttl") {
				if ttl <= 0 {
					return terminal.Misusef("--ttl %v: want more than 0, or leave it out for the namespace's", ttl)
				}
				req.Expiry = &datav1.Expiry{Is: &datav1.Expiry_Ttl{Ttl: durationpb.New(ttl)}}
			}
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.PutResponse, error) {
				return kv.Put(ctx, req)
			}, func(w io.Writer, resp *datav1.PutResponse) {
				terminal.Fields(w, "version", base64.StdEncoding.EncodeToString(resp.GetVersion()), "expires", terminal.Time(resp.GetExpireAt()))
			})
		},
	}
	terminal.DurationVar(cmd.Flags(), &ttl, "ttl", 0, "how long the item lives; default the namespace's")
	cmd.Flags().StringVar(&contentType, "content-type", "", "the media type of the value")
	conditionFlags(cmd, &ifAbsent, &ifPresent, &ifVersion)
	onceFlag(cmd, &once)
	return cmd
}

func conditionFlags(cmd *cobra.Command, absent, present *bool, version *string) {
	cmd.Flags().BoolVar(absent, "if-absent", false, "only if there is no such item")
	cmd.Flags().BoolVar(present, "if-present", false, "only if there is such an item")
	cmd.Flags().StringVar(version, "if-version", "", "only if the item has this version (base64, as put prints it)")
	cmd.MarkFlagsMutuallyExclusive("if-absent", "if-present", "if-version")
}

func condition(absent, present bool, version string) (*datav1.Condition, error) {
	switch {
	case absent:
		return &datav1.Condition{Is: &datav1.Condition_Absent{Absent: true}}, nil
	case present:
		return &datav1.Condition{Is: &datav1.Condition_Present{Present: true}}, nil
	case version != "":
		b, err := base64.StdEncoding.DecodeString(version)
		if err != nil {
			return nil, terminal.Misusef("--if-version %q is not base64", version)
		}
		return &datav1.Condition{Is: &datav1.Condition_Version{Version: b}}, nil
	}
	return nil, nil
}

func (c *Commands) value(arg string) ([]byte, error) {
	if arg == "-" {
		return io.ReadAll(c.term.In)
	}
	if file, ok := strings.CutPrefix(arg, "@"); ok {
		data, _, err := c.term.ReadFile(file)
		return data, err
	}
	return []byte(arg), nil
}

func (c *Commands) delete() *cobra.Command {
	var all, ifPresent bool
	var ifVersion string
	cmd := &cobra.Command{
		Use:     "delete NAMESPACE ID [KEY]",
		Short:   "Remove an item, or with --all every item of an id",
		Example: "  prismctl kv delete user-profiles alice name\n  prismctl kv delete user-profiles alice --all",
		Args:    cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, key, err := c.name(args[1:])
			if err != nil {
				return err
			}
			if all {
				if len(args) == 3 {
					return terminal.Misusef("--all removes every key of the id: leave the key out")
				}
				return c.deleteAll(cmd, args[0], id)
			}
			req := &datav1.DeleteRequest{Namespace: args[0], Id: id, Key: key}
			if req.Condition, err = condition(false, ifPresent, ifVersion); err != nil {
				return err
			}
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.DeleteResponse, error) {
				return kv.Delete(ctx, req)
			}, func(w io.Writer, resp *datav1.DeleteResponse) {
				if resp.GetExisted() {
					io.WriteString(w, "deleted\n")
				} else {
					io.WriteString(w, "there was no such item\n")
				}
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every item of the id")
	cmd.Flags().BoolVar(&ifPresent, "if-present", false, "fail if there is no such item")
	cmd.Flags().StringVar(&ifVersion, "if-version", "", "only if the item has this version (base64)")
	cmd.MarkFlagsMutuallyExclusive("all", "if-present", "if-version")
	return cmd
}

func (c *Commands) deleteAll(cmd *cobra.Command, name string, id []byte) error {
	return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.DeleteRangeResponse, error) {
		sum := &datav1.DeleteRangeResponse{}
		req := &datav1.DeleteRangeRequest{Namespace: name, Id: id, All: true}
		for {
			resp, err := kv.DeleteRange(ctx, req)
			if err != nil {
				return nil, err
			}
			sum.Deleted += resp.GetDeleted()
			if req.PageToken = resp.GetNextPageToken(); len(req.PageToken) == 0 {
				return sum, nil
			}
		}
	}, func(w io.Writer, sum *datav1.DeleteRangeResponse) {
		fmt.Fprintf(w, "deleted %d items\n", sum.GetDeleted())
	})
}

func (c *Commands) touch() *cobra.Command {
	var ttl time.Duration
	var never bool
	cmd := &cobra.Command{
		Use:     "touch NAMESPACE ID [KEY] --ttl DURATION",
		Short:   "Change until when an item lives, and nothing else",
		Example: "  prismctl kv touch user-profiles alice name --ttl 1h",
		Args:    cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, key, err := c.name(args[1:])
			if err != nil {
				return err
			}
			if ttl <= 0 && !never {
				return terminal.Misusef("--ttl %v: want more than 0, or --never", ttl)
			}
			expiry := &datav1.Expiry{Is: &datav1.Expiry_Ttl{Ttl: durationpb.New(ttl)}}
			if never {
				expiry = &datav1.Expiry{Is: &datav1.Expiry_Never{Never: true}}
			}
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.TouchResponse, error) {
				return kv.Touch(ctx, &datav1.TouchRequest{Namespace: args[0], Id: id, Key: key, Expiry: expiry})
			}, func(w io.Writer, resp *datav1.TouchResponse) {
				expires := terminal.Time(resp.GetExpireAt())
				if expires == "" {
					expires = "never"
				}
				terminal.Fields(w, "version", base64.StdEncoding.EncodeToString(resp.GetVersion()), "expires", expires)
			})
		},
	}
	terminal.DurationVar(cmd.Flags(), &ttl, "ttl", 0, "how long the item lives from now on")
	cmd.Flags().BoolVar(&never, "never", false, "let the item live for ever")
	cmd.MarkFlagsMutuallyExclusive("ttl", "never")
	cmd.MarkFlagsOneRequired("ttl", "never")
	return cmd
}

func (c *Commands) describe() *cobra.Command {
	return &cobra.Command{
		Use:     "describe NAMESPACE",
		Short:   "Show what holds for a namespace: interfaces, limits, consistency, durability",
		Example: "  prismctl kv describe user-profiles",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.DescribeResponse, error) {
				return kv.Describe(ctx, &datav1.DescribeRequest{Namespace: args[0]})
			}, describe)
		},
	}
}

// duration is a duration that may be absent.
func duration(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return d.AsDuration().String()
}

// large is the size of the largest large value, empty when there are none.
func large(bytes uint64) string {
	if bytes == 0 {
		return ""
	}
	return "up to " + strconv.FormatUint(bytes, 10) + " bytes"
}

func describe(w io.Writer, d *datav1.DescribeResponse) {
	var levels []string
	for _, l := range d.GetConsistencyLevels() {
		levels = append(levels, strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(l.String(), "CONSISTENCY_")), "_", "-"))
	}
	ttl := "for ever"
	if d.GetDefaultTtl() != nil {
		ttl = d.GetDefaultTtl().AsDuration().String()
	}
	granularity := ""
	if d.GetTtlGranularity() != nil {
		granularity = d.GetTtlGranularity().AsDuration().String()
	}
	terminal.Fields(w,
		"namespace", d.GetNamespace(),
		"config version", terminal.Short(d.GetConfigVersion()),
		"interfaces", strings.Join(d.GetInterfaces(), ", "),
		"durability", d.GetDurability(),
		"consistency", strings.Join(levels, ", "),
		"items live", ttl,
		"expiry steps", granularity,
		"largest id", strconv.Itoa(int(d.GetMaxIdBytes()))+" bytes",
		"largest key", strconv.Itoa(int(d.GetMaxKeyBytes()))+" bytes",
		"largest value", strconv.FormatUint(d.GetMaxValueBytes(), 10)+" bytes",
		"largest batch", strconv.Itoa(int(d.GetMaxBatchEntries()))+" entries, "+strconv.FormatUint(d.GetMaxRequestBytes(), 10)+" bytes",
		"large values", large(d.GetMaxLargeValueBytes()),
		"tokens last", duration(d.GetIdempotencyWindow()),
		"reads as old as", duration(d.GetMaxStaleness()),
		"deadline", d.GetDefaultDeadline().AsDuration().String()+", at most "+d.GetMaxDeadline().AsDuration().String(),
	)
	for _, n := range d.GetNotes() {
		fmt.Fprintf(w, "note: %s\n", terminal.Clean(n))
	}
}
