package s3server_test

import (
	"net"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/prism-gateway/prism/shared/testserver/s3server"
)

func TestServerAnswersAndKeepsItsData(t *testing.T) {
	s := s3server.Start(t, s3server.Options{})
	object := &s3.PutObjectInput{Bucket: aws.String(s3server.Bucket), Key: aws.String("a/b"), Body: strings.NewReader("value")}
	if _, err := s.Client().PutObject(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	s.Stop(t)
	if c, err := net.Dial("tcp", s.Addr()); err == nil {
		c.Close()
		t.Error("a stopped server takes connections")
	}
	s.Restart(t)
	got, err := s.Client().HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: object.Bucket, Key: object.Key})
	if err != nil || aws.ToInt64(got.ContentLength) != 5 {
		t.Errorf("after a restart: %v, %v", got, err)
	}
}
