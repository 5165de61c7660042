// One binary with the programs of a Kubernetes cluster, built from their published packages. It
// is the program by whose name it is called (through links beside it), as busybox is:
//
//	etcd CONFIG.yaml
//	kube-apiserver|kube-controller-manager|kube-scheduler|kubelet|kube-proxy|kubectl …
//
// Each takes the arguments of the release; only etcd has a command line of its own, because the
// flags are not part of what it publishes for embedding.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Made on demand: two of these in one process would register the same metrics and features twice.
var programs = map[string]func() *cobra.Command{
	"etcd":                    etcd,
	"kube-apiserver":          func() *cobra.Command { return apiserver.NewAPIServerCommand() },
	"kube-controller-manager": func() *cobra.Command { return controllers.NewControllerManagerCommand() },
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kube-proxy":              func() *cobra.Command { return proxy.NewProxyCommand() },
	"kubectl":                 func() *cobra.Command { return kubectl.NewDefaultKubectlCommand() },
}

func main() {
	name := filepath.Base(os.Args[0])
	if programs[name] == nil {
		fmt.Fprintf(os.Stderr, "call this by a link that is named as one of the programs, not as %s:\n", name)
		for name := range programs {
			fmt.Fprintln(os.Stderr, "  "+name)
		}
		os.Exit(2)
	}
	os.Exit(cli.Run(programs[name]()))
}

func etcd() *cobra.Command {
	return &cobra.Command{
		Use:  "etcd CONFIG.yaml",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			config, err := embed.ConfigFromFile(args[0])
			if err != nil {
				return err
			}
			server, err := embed.StartEtcd(config)
			if err != nil {
				return err
			}
			defer server.Close()
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
			select {
			case <-stop:
				return nil
			case err := <-server.Err():
				return err
			}
		},
	}
}
