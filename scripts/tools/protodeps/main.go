// Command protodeps prints the .proto files that ours import, from the descriptors that their Go modules carry,
// so that no copy of them is kept in the repository.
package main

import (
	"fmt"
	"os"

	_ "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
	_ "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: protodeps DIRECTORY")
		os.Exit(2)
	}
	printer := protoprint.Printer{}
	for _, path := range []string{"buf/validate/validate.proto", "google/rpc/status.proto"} {
		file, err := protoregistry.GlobalFiles.FindFileByPath(path)
		if err == nil {
			err = printer.PrintProtosToFileSystem([]protoreflect.FileDescriptor{file}, os.Args[1])
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "protodeps: %s: %v\n", path, err)
			os.Exit(1)
		}
	}
}
